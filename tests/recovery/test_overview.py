"""The overview: whether all is well, where to look if not, and what each reader is shown."""

from datetime import timedelta

import pytest
from django.db import connection
from django.urls import reverse
from django_q.models import Schedule

from ledger.models import OutboxEntry
from recovery import history, metrics, pauses, registry
from recovery.admin import overview
from recovery.admin.panels import label_text
from recovery.clock import db_now
from recovery.models import AuditRecord, Job, JobRun, Plan, PlanStatus, Sample
from recovery.wakeups import TASK
from splits.models import Breaker, OrderStatus, SplitOrder
from tests.adminpages import list_url, page_url, staff, statements, text_of
from tests.factories import SplitOrderFactory, hang
from tests.ledger.entries import into, store

pytestmark = pytest.mark.django_db

URL = "/admin/"
SEES = (
    "view_job",
    "view_plan",
    "view_auditrecord",
    "view_outboxentry",
    "view_splitorder",
)


@pytest.fixture
def viewer():
    return staff("eve", *SEES)


@pytest.fixture
def jobs(long_periods):
    """Store a row of each job of this program, all of them in good health."""
    Job.objects.all().delete()
    names = [it.name for it in registry.all_jobs()]
    Job.objects.bulk_create(
        Job(name=name, heartbeat_at=db_now(), last_status="ok", last_duration_s=0.25)
        for name in names
    )
    return names


@pytest.fixture
def well(jobs):
    """Let every gauge have been sampled just now, all of them at rest."""
    sample()
    return jobs


def sample(**values):
    """Replace the samples by these: a gauge, or a gauge and the value of its one label."""
    found = {
        ("outbox_entries", label_text(status="pending")): 0,
        ("outbox_entries", label_text(status="dead")): 0,
        ("outbox_oldest_pending_age_seconds", ""): 0,
        **{
            ("split_orders", label_text(state=it)): 0
            for it in ("in_progress", "stuck", "failed", "quarantined")
        },
        ("split_orders_overdue", ""): 0,
        ("job_lock_degraded", ""): 0,
    }
    for name, value in values.items():
        gauge, _parts, label = name.partition("__")
        kind = "status" if gauge == "outbox_entries" else "state"
        key = (gauge, label_text(**{kind: label}) if label else "")
        assert key in found
        found[key] = value
    metrics.store(Sample(name=name, labels=labels, value=n) for (name, labels), n in found.items())


def concerns(client):
    """Return what the page finds wrong, as text and address."""
    return [(str(it.text), it.url) for it in client.get(URL).context["concerns"]]


def verdict(client):
    return text_of(client, URL)


def figures(client, name):
    (panel,) = [it["panel"] for it in client.get(URL).context["panels"] if it["panel"].name == name]
    return {str(it.title): it for it in panel.figures}


def card(client, name):
    (found,) = [it for it in client.get(URL).context["jobs"] if it["job"].name == name]
    return found


# The verdict


def test_all_is_well_where_nothing_is_wrong(viewer, well):
    assert concerns(viewer) == []
    assert "✓ All is well" in verdict(viewer)


STUCK = "/admin/stuck/"


@pytest.mark.parametrize(
    ("values", "text", "url"),
    [
        ({"outbox_entries__dead": 1}, "1 entry is dead", "/admin/dlq/"),
        ({"outbox_entries__dead": 1_200}, "1,200 entries are dead", "/admin/dlq/"),
        ({"split_orders__stuck": 2}, "2 orders are stuck", STUCK),
        ({"split_orders__quarantined": 1}, "1 order is quarantined", STUCK),
        ({"split_orders__failed": 3}, "3 orders have failed", STUCK),
        (
            {"split_orders_overdue": 1},
            "1 order is due and nobody claims it",
            "/admin/splits/splitorder/?status=ready",
        ),
        (
            {"outbox_oldest_pending_age_seconds": 7_200},
            "The oldest entry has waited for 2 h",
            "/admin/ledger/outboxentry/?status=pending",
        ),
        (
            {"job_lock_degraded": 1},
            "Redis does not answer: jobs are locked by the database alone",
            "/admin/recovery/job/",
        ),
    ],
)
def test_sample_that_is_not_well_is_a_concern(viewer, well, values, text, url):
    sample(**values)
    assert concerns(viewer) == [(text, url)]
    assert f"✗ Not all is well ✗ {text}" in verdict(viewer)
    assert viewer.get(url).status_code == 200


def test_entry_that_waits_for_a_while_is_none(viewer, well):
    sample(outbox_oldest_pending_age_seconds=200, outbox_entries__pending=5)
    assert concerns(viewer) == []


def test_open_breaker_is_a_concern(viewer, well):
    Breaker.objects.create(endpoint="http://well.example")
    Breaker.objects.create(endpoint="http://erp.example", opened_at=db_now())
    text = "The completion endpoint does not answer: http://erp.example"
    assert concerns(viewer) == [(text, list_url(Breaker))]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"heartbeat_at": timedelta(hours=-1)}, "Job metricsCollect is late"),
        (
            {"heartbeat_at": None, "created_at": timedelta(hours=-1)},
            "Job metricsCollect is late",
        ),
        ({"last_status": "failed"}, "Job metricsCollect fails"),
        ({"last_status": "died"}, "Job metricsCollect fails"),
    ],
)
def test_job_that_is_late_or_fails_is_a_concern(viewer, well, columns, text):
    now = db_now()
    values = {k: now + v if isinstance(v, timedelta) else v for k, v in columns.items()}
    Job.objects.filter(name="metricsCollect").update(**values)
    assert concerns(viewer) == [(text, "/admin/recovery/job/metricsCollect/change/")]
    assert "✗ Not all is well" in verdict(viewer)


def test_job_that_has_just_been_made_is_not_late(viewer, well):
    Job.objects.update(heartbeat_at=None, last_status="", created_at=db_now())
    assert concerns(viewer) == []


def test_paused_job_is_told_but_not_bad(viewer, well):
    pauses.pause("metricsCollect", actor="ann")
    assert [text for text, _url in concerns(viewer)] == ["Job metricsCollect is paused"]
    assert "All runs, but:" in verdict(viewer)
    assert "Not all is well" not in verdict(viewer)


def test_halted_plan_is_a_concern_however_many_run(viewer, well):
    halted = plan(status=PlanStatus.HALTED)
    for _ in range(overview.SHOWN_PLANS):
        plan()
    assert concerns(viewer) == [(f"Plan {halted.pk} has halted by itself", page_url(halted))]
    shown = viewer.get(URL).context["plans"]
    assert (len(shown), shown[0]["plan"].pk) == (overview.SHOWN_PLANS, halted.pk)


OLD = "The figures are old: metricsCollect has not sampled lately"


@pytest.mark.parametrize(("age_s", "old"), [(1_500, False), (2_000, True)])
def test_samples_older_than_three_periods_are_a_concern(viewer, well, settings, age_s, old):
    assert settings.JOB_METRICS_PERIOD_SEC == 600
    Sample.objects.update(at=db_now() - timedelta(seconds=age_s))
    assert [text for text, _url in concerns(viewer)] == ([OLD] if old else [])


def test_age_of_the_oldest_entry_grows_with_its_sample(viewer, well, settings):
    settings.JOB_METRICS_PERIOD_SEC = 3_600
    sample(outbox_oldest_pending_age_seconds=265)
    Sample.objects.update(at=db_now() - timedelta(seconds=100))
    assert [text for text, _url in concerns(viewer)] == ["The oldest entry has waited for 6 min"]
    sample()
    Sample.objects.update(at=db_now() - timedelta(hours=2))
    assert concerns(viewer) == []


def test_without_metrics_the_page_says_that_nobody_counts(viewer, jobs, settings):
    settings.METRICS_ENABLED = False
    shown = verdict(viewer)
    assert "METRICS_ENABLED is false: nothing is sampled, and there are no charts." in shown
    assert "METRICS_ENABLED is false: nobody counts what waits, is dead or stuck" in shown
    assert "All is well" not in shown
    assert "All runs, but:" in shown
    assert OLD not in shown


def test_empty_database_is_shown(viewer, settings):
    Job.objects.all().delete()
    shown = verdict(viewer)
    assert OLD in shown
    assert "Nothing has been changed by hand or repaired." in shown
    context = viewer.get(URL).context
    assert (context["jobs"], context["plans"], context["records"]) == ([], [], [])
    assert not any(it["charts"] for it in context["panels"])


def test_real_trouble_is_counted_by_the_gauges(viewer, jobs):
    hang(SplitOrderFactory(), age_s=10_000)
    SplitOrderFactory(at=OrderStatus.FAILED)
    SplitOrderFactory(at=OrderStatus.QUARANTINED)
    store([("k", "lot:k", into("OAK", "1"))])
    OutboxEntry.objects.update(status="dead")
    metrics.store(it for it in metrics.collect() if it.name != "job_lock_degraded")
    assert [text for text, _url in concerns(viewer)] == [
        "1 entry is dead",
        "1 order is stuck",
        "1 order is quarantined",
        "1 order has failed",
    ]


# Figures and charts


def test_figures_are_the_samples_and_lead_to_their_rows(viewer, well):
    sample(outbox_entries__pending=12_345, outbox_entries__dead=2, split_orders__stuck=1)
    outbox, orders = figures(viewer, "outbox"), figures(viewer, "orders")
    assert (outbox["waiting"].value, outbox["waiting"].is_bad) == ("12,345", False)
    assert outbox["waiting"].url == list_url(OutboxEntry, status="pending")
    assert (outbox["dead"].value, outbox["dead"].is_bad) == ("2", True)
    assert (orders["stuck"].value, orders["stuck"].url) == ("1", f"{STUCK}#in_progress")
    assert (orders["overdue"].value, orders["overdue"].is_bad) == ("0", False)


def test_what_was_posted_and_failed_in_the_last_hour_is_said(viewer, well, monkeypatch):
    now = db_now()
    job, _made = Job.objects.get_or_create(name="processLedgerOutbox")
    for at, counts in (
        (now - timedelta(minutes=30), None),
        (now - timedelta(minutes=25), {"posted": 1_500, "failed:account_closed": 3}),
    ):
        monkeypatch.setattr(history, "db_now", lambda at=at: at)
        if counts:
            facts = {"fence": 1, "host": "h", "pid": 1, "status": "ok", "counts": counts}
            JobRun.objects.create(job=job, started_at=at, finished_at=at, **facts)
        history.keep(Sample.objects.all())
    assert figures(viewer, "outbox")["posted in the last hour"].value == "1,500"
    (panel,) = [it for it in viewer.get(URL).context["panels"] if it["panel"].name == "outbox"]
    assert panel["panel"].tables[0].rows == [("account is closed", "3", "3")]
    assert [it["name"] for it in panel["charts"]][:2] == ["depth-hour", "age-hour"]


# Jobs as cards


def test_card_says_how_a_job_fares(viewer, well):
    now = db_now()
    Job.objects.filter(name="metricsCollect").update(
        last_status="failed",
        last_error="Boom: it broke\nTraceback",
        last_started_at=now - timedelta(hours=3),
        lease_owner="host:1:t",
        lease_expires_at=now + timedelta(seconds=1_010),
    )
    Schedule.objects.filter(name="metricsCollect").delete()
    Schedule.objects.create(
        name="metricsCollect", func=TASK, next_run=now + timedelta(seconds=7_800)
    )
    it = card(viewer, "metricsCollect")
    assert (it["health"], it["is_bad"], it["took"]) == ("failing", True, "0.25 s")
    assert "3 h ago" in it["last"]
    assert "in 2 h" in it["next"]
    assert "16 min left" in it["lease"]
    assert it["error"]
    assert "\n" not in it["error"]
    assert (card(viewer, "auditArchive")["health"], card(viewer, "auditArchive")["error"]) == (
        "healthy",
        "",
    )


def test_job_that_never_ran_and_one_whose_lease_expired_are_shown(viewer, well):
    Job.objects.filter(name="metricsCollect").update(
        lease_owner="host:1:t", lease_expires_at=db_now() - timedelta(seconds=1)
    )
    it = card(viewer, "metricsCollect")
    assert (it["last"], it["lease"]) == ("never ran", "free")


def test_only_jobs_of_this_program_are_shown(viewer, well):
    Job.objects.create(name="aJobOfAnotherVersion")
    shown = [it["job"].name for it in viewer.get(URL).context["jobs"]]
    assert shown == sorted(well)


def test_buttons_of_a_card_are_of_those_who_may(viewer, well):
    pauses.pause("auditArchive", actor="ann")
    operator = staff("ann", *SEES, "change_job")

    def offered(client, name):
        return [it["operation"].name for it in card(client, name)["buttons"]]

    assert offered(operator, "metricsCollect") == ["run_now", "pause"]
    assert offered(operator, "auditArchive") == ["resume"]
    assert card(operator, "auditArchive")["next"] == ""
    assert offered(viewer, "metricsCollect") == []
    assert b'value="run_now"' not in viewer.get(URL).content


# Plans and records


def plan(status=PlanStatus.RUNNING, **facts):
    given = {"action": "split.retry", "actor": "ann", "reason": "INC-7", "rows_total": 4}
    return Plan.objects.create(status=status, **{**given, **facts})


def test_plans_that_have_not_ended_are_shown_the_newest_first(viewer, well):
    for status in (PlanStatus.PLANNED, PlanStatus.DONE, PlanStatus.CANCELLED):
        plan(status=status)
    first, second = plan(rows_done=1), plan(status=PlanStatus.PAUSED)
    shown = viewer.get(URL).context["plans"]
    assert [it["plan"].pk for it in shown] == [second.pk, first.pk]
    assert "1 of 4" in shown[1]["meter"]
    assert f"{first.pk} split.retry running 1 of 4 ann INC-7" in verdict(viewer)


def test_latest_records_are_shown_with_a_link(viewer, well):
    for nth in range(overview.SHOWN_RECORDS + 1):
        AuditRecord.objects.create(
            actor="ann", action=f"act-{nth}", target_type="job", target_id="x", reason="because"
        )
    shown = viewer.get(URL).context["records"]
    assert [it["record"].action for it in shown][:2] == ["act-10", "act-9"]
    assert len(shown) == overview.SHOWN_RECORDS
    assert viewer.get(shown[0]["url"]).status_code == 200


# Who sees what


@pytest.mark.parametrize(
    ("permission", "panels"), [("view_outboxentry", ["outbox"]), ("view_splitorder", ["orders"])]
)
def test_panels_and_their_concerns_are_of_those_who_may_see_them(well, permission, panels):
    sample(outbox_entries__dead=1, split_orders__failed=1)
    client = staff("dan", permission)
    context = client.get(URL).context
    assert [it["panel"].name for it in context["panels"]] == panels
    assert len(context["concerns"]) == 1
    assert (context["jobs"], context["plans"], context["records"]) == ([], [], [])


def test_staff_without_any_permission_see_no_rows(well):
    plan(status=PlanStatus.HALTED)
    pauses.pause("metricsCollect", actor="ann", reason="secret reason")
    sample(outbox_entries__dead=1)
    client = staff("nobody")
    context = client.get(URL).context
    assert (context["panels"], context["jobs"], context["plans"]) == ([], [], [])
    assert "secret reason" not in verdict(client)
    assert "INC-7" not in verdict(client)


def test_page_is_refreshed_by_itself(viewer, well):
    assert f'data-every-s="{overview.REFRESH_S}"' in viewer.get(URL).content.decode()
    assert reverse("admin:index") == URL


# What it costs


def fill(count):
    """Have so many rows of everything that the page is about."""
    for model in (Plan, Breaker):
        model.objects.all().delete()
    store((f"{count}-{n}", f"lot:{count}-{n}", into("OAK", "1")) for n in range(count))
    OutboxEntry.objects.update(status="dead")
    plan(status=PlanStatus.HALTED)
    for _ in range(count):
        plan()
    AuditRecord.objects.bulk_create(
        AuditRecord(actor="ann", action="a", target_type="job", target_id=f"{n}")
        for n in range(count)
    )
    Breaker.objects.bulk_create(
        Breaker(endpoint=f"http://{n}.example", opened_at=db_now()) for n in range(count)
    )
    for order in SplitOrderFactory.create_batch(count):
        hang(order)
    SplitOrder.objects.update(finalize_progress_at=db_now() - timedelta(hours=2))
    metrics.store(metrics.collect())
    history.keep(Sample.objects.all())


def test_number_of_statements_does_not_grow_with_the_rows(viewer, well):
    counts = []
    for rows in (3, 30):
        fill(rows)
        viewer.get(URL)
        counts.append(len(statements(viewer, URL)))
    assert counts[0] == counts[1]
    assert counts[0] <= 20


def test_page_reads_no_big_table(viewer, well):
    fill(3)
    read = " ".join(statements(viewer, URL))
    for model in (OutboxEntry, SplitOrder, JobRun):
        assert connection.ops.quote_name(model._meta.db_table) not in read
