"""Plans in the console: how far one is, what became of its rows, and its brakes on the record."""

import pytest

from ledger.models import OutboxEntry
from recovery.models import AuditRecord, ItemStatus, Plan, PlanItem, PlanStatus
from tests.adminpages import list_url, listed, page_url, staff, text_of
from tests.console import messages_in
from tests.ledger.entries import into, put
from tests.tables import Sql, let_plan, plan_of, reads_at_most, store_many, text

pytestmark = pytest.mark.django_db

URL = "/admin/recovery/plan/"
SEES = ("view_plan", "view_planitem", "view_outboxentry", "view_splitorder")


@pytest.fixture
def ann():
    return staff("ann", *SEES, "redrive_outboxentry")


@pytest.fixture
def viewer():
    return staff("eve", *SEES)


def plan_of_rows(*statuses, status=PlanStatus.RUNNING, action="outbox.redrive", **facts):
    """Return a plan with a row of each of these statuses."""
    total = sum(it != ItemStatus.EXCLUDED for it in statuses)
    given = {"actor": "ann", "reason": "INC-7", "rows_total": total, **facts}
    plan = Plan.objects.create(action=action, status=status, **given)
    PlanItem.objects.bulk_create(
        PlanItem(plan=plan, row_id=nth, label=f"row-{nth}", status=it, note=f"why {it}")
        for nth, it in enumerate(statuses, start=1)
    )
    return plan


def table(client, plan, title):
    tables = client.get(page_url(plan)).context["tables"]
    (found,) = [it for it in tables if it.title == title]
    return found


def operated(client, name, *chosen, reason="enough", **more):
    """Do to plans what a button or an action of the list does, confirmed with a reason."""
    data = {"action": name, "_selected_action": [it.pk for it in chosen], "confirmed": "yes"}
    return client.post(URL, {**data, "reason": reason, **more}, follow=True)


def status_of(plan):
    return Plan.objects.get(pk=plan.pk).status


def records():
    columns = ("action", "actor", "target_id", "reason")
    return list(AuditRecord.objects.order_by("id").values_list(*columns))


def offered(client, plan):
    return [it["operation"].name for it in client.get(page_url(plan)).context["buttons"]]


# What is seen


@pytest.mark.parametrize(
    ("done", "total", "width"), [(0, 12, 0), (3, 12, 25), (11_999, 12_000, 99), (0, 0, 100)]
)
def test_meter_says_how_much_is_done(viewer, done, total, width):
    plan = plan_of_rows(rows_done=done)
    Plan.objects.update(rows_total=total)
    content = viewer.get(page_url(plan)).content.decode()
    assert f'<i style="width:{width}%"></i>' in content
    assert f"{done:,} of {total:,}" in text_of(viewer, page_url(plan))


def test_page_says_who_why_how_and_what_was_chosen(viewer):
    plan = plan_of_rows(
        note="too many fail",
        status=PlanStatus.HALTED,
        selection={"group": "abc"},
        canary=[1, 10],
        stage=1,
        stage_known=4,
        rate=2.5,
        halt_share=0.05,
        carrier="host:1:token",
    )
    shown = text_of(viewer, page_url(plan))
    for said in (
        "halted",
        "ann",
        "INC-7",
        "too many fail",
        "1, 10, then the rest; at stage 2, 4 tried",
        "2.5 rows a second",
        "5%",
        "host:1",
        "&quot;group&quot;: &quot;abc&quot;",
    ):
        assert said in shown, said
    assert "token" not in shown


def test_counts_link_to_the_rows_they_count(viewer):
    plan = plan_of_rows("done", "done", "failed", "excluded")
    plan_of_rows("done")
    counts = table(viewer, plan, "Rows")
    found = {str(state): str(n) for state, n in counts.rows}
    assert len(found) == 3
    url = list_url(PlanItem, plan=plan.pk, status="done")
    (cell,) = [n for n in found.values() if url.replace("&", "&amp;") in n]
    assert cell.endswith(">2</a>")
    assert len(listed(viewer, PlanItem, plan=plan.pk, status="done")) == 2
    assert counts.more[0] == list_url(PlanItem, plan=plan.pk)
    assert len(listed(viewer, PlanItem, plan=plan.pk)) == 4


def test_rows_that_went_wrong_are_listed_with_why_and_a_link(viewer):
    plan = plan_of_rows("done", "failed", "undone", "drifted", "held", "waiting", "excluded")
    wrong = table(viewer, plan, "Rows that were not done")
    assert sorted(why for _row, _state, why, _at in wrong.rows) == [
        "why drifted",
        "why failed",
        "why held",
        "why undone",
    ]
    left_out = table(viewer, plan, "Rows left out")
    ((row, _state, why, _at),) = left_out.rows
    assert why == "why excluded"
    assert row == '<a href="/admin/ledger/outboxentry/7/change/">row-7</a>'


def test_plan_of_an_action_that_is_no_more_is_shown_without_links(viewer, admin_client):
    plan = plan_of_rows("failed", "applied", action="outbox.gone")
    ((row, *_rest),) = table(viewer, plan, "Rows that were not done").rows
    assert row == "row-1"
    assert offered(admin_client, plan) == []


def test_rows_handed_on_are_followed_to_how_they_fare(viewer):
    entries = [put(f"k{n}", into("OAK", "1")) for n in range(3)]
    OutboxEntry.objects.filter(pk=entries[0].pk).update(status="posted")
    OutboxEntry.objects.filter(pk=entries[1].pk).update(status="dead", attempts=3)
    plan = plan_of_rows()
    PlanItem.objects.bulk_create(
        PlanItem(plan=plan, row_id=it.pk, label=it.event_key, status="applied") for it in entries
    )
    shown = text_of(viewer, page_url(plan))
    for fate in ("well by now 1", "failed again 1", "not tried yet 1"):
        assert f"of those applied: {fate}" in shown


def test_payload_among_the_parameters_takes_its_permission(viewer):
    parameters = {"payload": {"secret": "quantity"}, "redrive": True}
    plan = plan_of_rows(action="outbox.edit", parameters=parameters)
    shown = text_of(viewer, page_url(plan))
    assert "quantity" not in shown
    assert "ledger.view_payload" in shown
    assert "quantity" in text_of(staff("bob", *SEES, "view_payload"), page_url(plan))


@pytest.mark.parametrize("status", PlanStatus.values)
def test_page_is_refreshed_only_while_the_plan_runs(viewer, status):
    content = viewer.get(page_url(plan_of_rows(status=status))).content.decode()
    running = status == PlanStatus.RUNNING
    assert f'data-every-s="{2 if running else 0}"' in content
    assert ('http-equiv="refresh"' in content) is running


def test_list_of_plans_is_filtered_by_status_and_searched_by_number(viewer):
    running = plan_of_rows()
    done = plan_of_rows(status=PlanStatus.DONE)
    newer = plan_of_rows()
    assert listed(viewer, Plan) == [newer.pk, done.pk, running.pk]
    assert listed(viewer, Plan, status="running") == [newer.pk, running.pk]
    assert listed(viewer, Plan, q=str(done.pk)) == [done.pk]
    assert listed(viewer, Plan, q="x") == []


# The brakes


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (PlanStatus.PLANNED, ["start", "cancel"]),
        (PlanStatus.RUNNING, ["pause", "cancel"]),
        (PlanStatus.PAUSED, ["resume", "cancel"]),
        (PlanStatus.HALTED, ["resume", "cancel"]),
        (PlanStatus.DONE, []),
        (PlanStatus.CANCELLED, []),
    ],
)
def test_page_offers_what_fits_the_plan(ann, viewer, status, names):
    plan = plan_of_rows(status=status)
    assert offered(ann, plan) == names
    assert offered(viewer, plan) == []


@pytest.mark.parametrize(
    ("name", "status", "becomes", "audited", "said", "already"),
    [
        ("start", "planned", "running", "plan-started", "runs", "was started already"),
        ("pause", "running", "paused", "plan-paused", "is paused", "does not run"),
        ("resume", "paused", "running", "plan-resumed", "goes on", "does not stand"),
        ("cancel", "halted", "cancelled", "plan-cancelled", "is cancelled", "has ended"),
    ],
)
def test_brake_takes_a_reason_and_is_on_the_record_once(
    ann, name, status, becomes, audited, said, already
):
    plan = plan_of_rows("waiting", status=status)
    asked = operated(ann, name, plan, reason="")
    assert asked.context["form"].errors["reason"]
    assert status_of(plan) == status
    response = operated(ann, name, plan, from_page="yes")
    assert response.redirect_chain == [(page_url(plan), 302)]
    assert messages_in(response) == [f"Plan {plan} {said}."]
    assert status_of(plan) == becomes
    again = operated(ann, name, plan)
    assert messages_in(again) == [f"Plan {plan} {already}; nothing has been changed."]
    assert records() == [(audited, "ann", str(plan.pk), "enough")]


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("start", "cancelled", "was cancelled: make a new one"),
        ("resume", "cancelled", "is cancelled: make a new one"),
        ("resume", "done", "is done: make a new one"),
    ],
)
def test_plan_that_has_ended_says_why_it_does_not_go_on(ann, name, status, said):
    plan = plan_of_rows(status=status)
    response = operated(ann, name, plan)
    assert messages_in(response) == [f"plan {plan.pk} {said}"]
    assert status_of(plan) == status
    assert records() == []


def test_resumed_plan_that_halted_tries_what_failed_once_more(ann):
    entry = put("k", into("OAK", "1"))
    OutboxEntry.objects.filter(pk=entry.pk).update(status="dead")
    plan = plan_of_rows(status=PlanStatus.HALTED, rows_done=1, canary=[1], stage=1)
    PlanItem.objects.create(plan=plan, row_id=entry.pk, label="k", status="undone")
    operated(ann, "resume", plan)
    plan.refresh_from_db()
    assert (plan.status, plan.stage, plan.rows_done) == (PlanStatus.RUNNING, 0, 0)
    assert plan.items.get().status == ItemStatus.WAITING


@pytest.mark.parametrize("name", ["start", "pause", "resume", "cancel"])
def test_brake_takes_the_permission_of_what_the_plan_does(viewer, name):
    status = {"start": "planned", "resume": "paused"}.get(name, "running")
    plan = plan_of_rows(status=status)
    other = staff("dan", *SEES, "discard_outboxentry", "retry_splitorder", "change_plan")
    assert offered(other, plan) == []
    for client in (other, viewer):
        assert operated(client, name, plan).status_code == 403
    assert (status_of(plan), records()) == (status, [])


def test_one_plan_of_another_permission_stops_all_that_are_chosen(ann):
    mine, other = plan_of_rows(), plan_of_rows(action="split.retry")
    assert operated(ann, "pause", mine, other).status_code == 403
    assert {status_of(mine), status_of(other)} == {"running"}
    assert operated(ann, "pause", mine).status_code == 200
    assert status_of(mine) == PlanStatus.PAUSED


# The list of rows


def test_rows_are_listed_by_plan_and_status_newest_first(viewer):
    plan = plan_of_rows("done", "failed", "done")
    other = plan_of_rows("done")
    ids = list(plan.items.order_by("-id").values_list("pk", flat=True))
    assert listed(viewer, PlanItem, plan=plan.pk) == ids
    assert listed(viewer, PlanItem, plan=plan.pk, status="done") == [ids[0], ids[2]]
    assert len(listed(viewer, PlanItem)) == 4
    assert listed(viewer, PlanItem, plan=other.pk, status="failed") == []
    assert listed(viewer, PlanItem, plan=other.pk + 1) == []


@pytest.mark.parametrize("query", [{"plan": "x"}, {"plan": "9" * 30}, {"status": "eaten"}])
def test_filter_that_cannot_be_is_refused(viewer, query):
    plan_of_rows("done")
    response = viewer.get(list_url(PlanItem, **query))
    assert response.status_code == 302
    assert response.headers["Location"] == "/admin/recovery/planitem/?e=1"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("query", [{"plan": 3}, {"plan": 3, "status": "failed"}])
def test_rows_are_read_in_the_order_of_an_index(viewer, query):
    store_many(Plan, 5, id=Sql("n"), action="split.retry", actor="ann", reason="x", parameters={})
    store_many(
        PlanItem,
        20_000,
        plan=Sql("n % 5 + 1"),
        row_id=Sql("n"),
        label=text("row-{n}"),
        status=Sql("CASE WHEN n % 20 < 5 THEN 'failed' ELSE 'done' END"),
        result={},
    )
    let_plan(Plan, PlanItem)
    shown = viewer.get(list_url(PlanItem, **query)).context["cl"]
    assert len(shown.result_list) == shown.list_per_page
    plan = plan_of(shown.queryset[: shown.list_per_page])
    assert not plan.scans, plan
    assert not plan.sorts, plan
    assert reads_at_most(10 * shown.list_per_page, lambda: list(shown.keyset.after("").rows))
