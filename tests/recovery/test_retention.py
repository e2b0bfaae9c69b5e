"""What is past its days goes, a few rows at a time, and nobody waits for it."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib.sessions.models import Session
from django.db import OperationalError, connection, transaction
from django.db.models.functions import Now
from django_q.models import OrmQ, Schedule, Task

from ledger import models as ledger
from recovery import retention, runner
from recovery.clock import db_now
from recovery.models import AppendOnlyError, AuditRecord, Job, JobRun, Plan, PlanItem, SampleMoment
from recovery.pacing import next_size
from recovery.retention import LEAST_ROWS, LONGEST_S, MOST_ROWS, MustStayError, Rule
from splits import models as splits
from tests.ledger.entries import refusing
from tests.recovery.engine import NAME, in_thread

pytestmark = pytest.mark.django_db(transaction=True)
JOB = "auditArchive"
RULE = next(rule for rule in retention.all_rules() if rule.name == "job_runs")


@pytest.fixture(autouse=True)
def _no_redis(no_redis, settings):
    settings.JOB_TIME_BUDGET_SEC = 600  # one run is enough
    Job.objects.create(name=NAME)


def aged(*ages_days):
    """Store runs that began so many days ago; return their keys."""
    now = db_now()
    started = [now - timedelta(days=age) for age in ages_days]
    JobRun.objects.bulk_create(
        JobRun(job_id=NAME, fence=1, host="h", pid=1, status="ok", started_at=at) for at in started
    )
    return [JobRun.objects.filter(job_id=NAME, started_at=at).last().pk for at in started]


def left():
    return set(JobRun.objects.filter(job_id=NAME).values_list("pk", flat=True))


def task(name, age_days):
    at = db_now() - timedelta(days=age_days)
    Task.objects.create(id=name, name=name, func="f", started=at, stopped=at, success=False)


def sweep(seal=lambda: None):
    return list(RULE.sweep(db_now(), run_id=uuid4(), seal=seal))


def test_rows_past_their_days_go_and_younger_ones_stay(settings):
    settings.JOB_RUN_RETENTION_DAYS = 7
    young, _old = aged(6.99, 7.01)
    task("young", 6.99)
    task("old", 7.01)
    outcome = runner.run_job(JOB)
    assert (outcome.status, outcome.again) == ("ok", False)
    assert outcome.result == {"job_runs_deleted": 1, "failed_tasks_deleted": 1}
    assert left() == {young}
    assert [it.pk for it in Task.objects.all()] == ["young"]


def test_run_that_finds_nothing_is_an_idle_one():
    aged(1)
    assert runner.run_job(JOB).result == {}


def test_backlog_is_deleted_batch_by_batch_within_the_time_budget(settings, monkeypatch):
    monkeypatch.setattr(retention, "FIRST_ROWS", 10)
    monkeypatch.setattr(retention, "MOST_ROWS", 10)
    aged(*[100] * 25)
    settings.JOB_TIME_BUDGET_SEC = 0
    outcomes = [runner.run_job(JOB) for _ in range(4)]
    assert [it.result.get("job_runs_deleted") for it in outcomes] == [10, 10, 5, None]
    assert [it.again for it in outcomes] == [True, True, True, False]


def test_lost_lease_deletes_nothing(monkeypatch):
    aged(100)
    renew = runner.Run.renew_lease

    def lose(run):
        Job.objects.filter(name=JOB).update(fence=99)
        renew(run)

    monkeypatch.setattr(runner.Run, "renew_lease", lose)
    assert runner.run_job(JOB).status == "failed"
    assert len(left()) == 1


def test_renewal_is_the_last_statement_of_each_transaction():
    aged(100)
    seen = []

    def seal():
        assert connection.in_atomic_block
        seen.append(len(left()))

    sweep(seal)
    assert seen == [0]


@pytest.mark.parametrize("dated_by", ["us", "the database"])
def test_many_rows_of_one_moment_are_all_deleted(monkeypatch, dated_by):
    monkeypatch.setattr(retention, "FIRST_ROWS", 10)
    aged(*[100] * 35)
    if dated_by == "the database":  # SQLite writes three decimals where Django writes six
        JobRun.objects.update(started_at=Now())
    in_a_year = db_now() + timedelta(days=365)
    assert sum(RULE.sweep(in_a_year, run_id=uuid4(), seal=lambda: None)) == 35


@pytest.mark.mariadb
def test_rows_that_somebody_holds_are_left_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(retention, "FIRST_ROWS", 2)
    *_others, held = aged(103, 102, 101, 100)
    with transaction.atomic():
        JobRun.objects.select_for_update().get(pk=held)
        assert in_thread(sweep) == [2, 1]
        assert left() == {held}
    assert sweep() == [1]


@pytest.mark.parametrize(
    ("size", "took_s", "following"),
    [
        (100, 0.0, 200),
        (999, 0.0, MOST_ROWS),
        (100, LONGEST_S / 2, 100),
        (100, LONGEST_S * 1.1, 50),
        (LEAST_ROWS, 9.0, LEAST_ROWS),
    ],
)
def test_size_of_a_batch_follows_its_time(size, took_s, following):
    limits = {"least": LEAST_ROWS, "most": MOST_ROWS, "longest_s": LONGEST_S}
    assert next_size(size, took_s, **limits) == following


def test_slow_transactions_make_smaller_ones(monkeypatch):
    monkeypatch.setattr(retention, "LONGEST_S", -1)
    monkeypatch.setattr(retention, "FIRST_ROWS", 40)
    aged(*[100] * 75)
    assert sweep() == [40, 20, 10, 5]


def test_rule_is_one_function(monkeypatch):
    monkeypatch.setattr(retention, "_rules", {})

    @retention.retention("things", days_setting="JOB_RUN_RETENTION_DAYS", by="pk")
    def old_things(before):
        """Things."""
        return JobRun.objects.older_than(before)

    assert retention.all_rules() == [Rule("things", "pk", old_things, "JOB_RUN_RETENTION_DAYS")]


def test_rules_of_all_apps_are_found():
    assert {rule.name for rule in retention.all_rules()} == {
        "expired_sessions", "failed_tasks", "job_runs", "left_tasks", "outbox_entries",
        "plan_rows", "plans", "sample_moments", "stuck_sightings",
    }  # fmt: skip


# What else django-q2 and metricsCollect may leave


def test_wake_ups_of_another_cluster_go_and_ours_stay(settings):
    settings.JOB_RUN_RETENTION_DAYS = 7
    now = db_now()
    for key in ("former", settings.Q_CLUSTER["name"]):
        for lock in (datetime(2000, 1, 1, tzinfo=UTC), now - timedelta(days=6.99)):
            OrmQ.objects.create(key=key, payload="p", lock=lock)
    assert runner.run_job(JOB).result == {"left_tasks_deleted": 1}
    (taken,) = OrmQ.objects.filter(key="former")
    assert taken.lock.year > 2000, "a cluster may be at work on it"
    assert OrmQ.objects.count() == 3


def test_moments_that_nobody_drops_any_more_go_after_two_days():
    now = db_now()
    ages = {True: (1.99, 2.01), False: (1.99, 2.01)}
    for is_coarse, days in ages.items():
        for age in days:
            SampleMoment.objects.create(at=now - timedelta(days=age), is_coarse=is_coarse)
    assert runner.run_job(JOB).result == {"sample_moments_deleted": 2}
    assert all(it.at > now - timedelta(days=2) for it in SampleMoment.objects.all())


def test_successes_that_were_kept_once_go_like_failures():
    task("kept", 8)
    Task.objects.update(success=True)
    assert runner.run_job(JOB).result == {"failed_tasks_deleted": 1}


def test_schedules_are_no_business_of_retention():
    tables = {rule.table for rule in retention.all_rules()}
    assert not tables & {Schedule, Job}


# Audited


def applied():
    return list(AuditRecord.objects.filter(action="retention-applied").order_by("id"))


def test_deletion_is_audited_with_policy_and_cut_off(settings):
    settings.JOB_RUN_RETENTION_DAYS = 7
    aged(8)
    now = db_now()
    runner.run_job(JOB)
    (record,) = applied()
    assert (record.actor, record.target_type, record.target_id) == (
        "system:auditArchive", "retention", "job_runs",
    )  # fmt: skip
    assert record.reason == "JOB_RUN_RETENTION_DAYS=7: Runs of jobs."
    assert record.run_id == JobRun.objects.get(job_id=JOB).run_id
    before = datetime.fromisoformat(record.evidence.pop("before"))
    assert timedelta() <= before - (now - timedelta(days=7)) < timedelta(minutes=5)
    assert record.evidence == {"days": 7, "table": "recovery_jobrun"}


def test_what_has_no_setting_is_audited_too():
    over = db_now() - timedelta(seconds=1)
    Session.objects.create(session_key="over", session_data="", expire_date=over)
    runner.run_job(JOB)
    (record,) = applied()
    assert (record.target_id, record.reason) == (
        "expired_sessions",
        "at once: Log-ins that are over.",
    )


def test_run_that_deletes_nothing_audits_nothing():
    aged(1)
    runner.run_job(JOB)
    assert applied() == []


def test_batches_of_a_rule_and_run_share_one_record(monkeypatch):
    monkeypatch.setattr(retention, "FIRST_ROWS", 10)
    monkeypatch.setattr(retention, "MOST_ROWS", 10)
    aged(*[100] * 25)
    task("old", 100)
    assert runner.run_job(JOB).result == {"job_runs_deleted": 25, "failed_tasks_deleted": 1}
    assert [it.target_id for it in applied()] == ["failed_tasks", "job_runs"]


def test_each_run_has_a_record_of_its_own(monkeypatch, settings):
    monkeypatch.setattr(retention, "FIRST_ROWS", 10)
    monkeypatch.setattr(retention, "MOST_ROWS", 10)
    settings.JOB_TIME_BUDGET_SEC = 0
    aged(*[100] * 25)
    for _ in range(4):
        runner.run_job(JOB)
    assert len({it.run_id for it in applied()}) == len(applied()) == 3


def test_record_stands_in_the_transaction_of_the_first_batch(monkeypatch):
    monkeypatch.setattr(retention, "FIRST_ROWS", 10)
    aged(*[100] * 15)
    seen = []
    sweep(lambda: seen.append((in_thread_of_its_own(), len(applied()), len(left()))))
    assert [it[1:] for it in seen] == [(1, 5), (1, 0)]
    if connection.vendor == "mysql":
        assert [it[0] for it in seen] == [(0, 15), (1, 5)], "what others see meanwhile"


def in_thread_of_its_own():
    """Return what another connection sees; nothing on SQLite, whose tests share one."""
    if connection.vendor == "mysql":
        return in_thread(lambda: (len(applied()), len(left())))
    return None


def test_nothing_is_deleted_where_no_record_can_be_written():
    kept = aged(100, 99)
    task("old", 100)
    with refusing(AuditRecord._meta.db_table, "NEW.action = 'retention-applied'"):
        outcome = runner.run_job(JOB)
        assert outcome.status == "failed"
        assert "not this one" in outcome.reason
        assert left() == set(kept)
        assert Task.objects.exists()
    assert runner.run_job(JOB).result == {"job_runs_deleted": 2, "failed_tasks_deleted": 1}
    assert [it.target_id for it in applied()] == ["failed_tasks", "job_runs"]


def test_lost_lease_takes_the_record_back():
    aged(100)

    def lose():
        raise LookupError

    with pytest.raises(LookupError):
        sweep(lose)
    assert (len(left()), applied()) == (1, [])


def test_commit_whose_answer_was_lost_is_audited_once(monkeypatch):
    monkeypatch.setattr(retention, "FIRST_ROWS", 10)
    aged(*[100] * 15)
    delete, lost = retention._delete, iter([True])

    def answer_lost(*args, **kwargs):
        deleted = delete(*args, **kwargs)
        if next(lost, False):
            raise OperationalError(
                *{"mysql": (2013, "gone"), "sqlite": ("disk I/O error",)}[connection.vendor]
            )
        return deleted

    monkeypatch.setattr(retention, "_delete", answer_lost)
    sweep()
    assert (left(), len(applied())) == (set(), 1)


@pytest.mark.mariadb
def test_batch_that_is_held_whole_leaves_the_record_to_the_next(monkeypatch):
    monkeypatch.setattr(retention, "FIRST_ROWS", 2)
    *held, _free = aged(103, 102, 101)
    with transaction.atomic():
        list(JobRun.objects.select_for_update().filter(pk__in=held))
        assert in_thread(sweep) == [0, 1]
    assert len(applied()) == 1


# Previewed


def ended_plan(age_days, rows):
    plan = Plan.objects.create(action="a", actor="a", reason="r", status="done")
    PlanItem.objects.bulk_create(PlanItem(plan=plan, row_id=it) for it in range(rows))
    Plan.objects.filter(pk=plan.pk).update(created_at=db_now() - timedelta(days=age_days))


def test_preview_is_what_the_next_run_deletes(settings):
    aged(1, 100, 99)
    task("old", 100)
    ended_plan(100, 3)
    ended_plan(100, 0)
    ended_plan(1, 2)
    OrmQ.objects.create(key="former", payload="p", lock=datetime(2000, 1, 1, tzinfo=UTC))
    SampleMoment.objects.create(at=db_now() - timedelta(days=3))
    over = db_now() - timedelta(seconds=1)
    Session.objects.create(session_key="over", session_data="", expire_date=over)
    previews = retention.preview(db_now())
    assert not applied(), "it deletes nothing"
    assert {f"{it.rule}_deleted": it.rows for it in previews if it.rows} == {
        "job_runs_deleted": 2, "failed_tasks_deleted": 1, "plan_rows_deleted": 3,
        "plans_deleted": 2, "left_tasks_deleted": 1, "sample_moments_deleted": 1,
        "expired_sessions_deleted": 1,
    }  # fmt: skip
    outcome = runner.run_job(JOB)
    assert outcome.result == {f"{it.rule}_deleted": it.rows for it in previews if it.rows}


def test_preview_says_which_policy_where_and_since_when(settings):
    settings.JOB_RUN_RETENTION_DAYS = 7
    aged(8, 9)
    ended_plan(100, 1)
    now = db_now()
    by_rule = {it.rule: it for it in retention.preview(now)}
    assert list(by_rule) == sorted(by_rule)
    assert by_rule["job_runs"] == retention.Preview(
        rule="job_runs",
        setting="JOB_RUN_RETENTION_DAYS",
        days=7,
        table="recovery_jobrun",
        before=now - timedelta(days=7),
        rows=2,
        oldest=JobRun.objects.earliest("started_at").started_at,
    )
    assert by_rule["plan_rows"].oldest == Plan.objects.get().created_at
    assert (by_rule["failed_tasks"].rows, by_rule["failed_tasks"].oldest) == (0, None)
    assert by_rule["left_tasks"].oldest is None, "its table does not tell"
    assert (by_rule["expired_sessions"].setting, by_rule["expired_sessions"].days) == ("", 0)


# What must stay


@pytest.fixture
def _no_rules(monkeypatch):
    monkeypatch.setattr(retention, "_rules", {})
    monkeypatch.setattr(retention, "_kept", set(retention._kept))


def register(model):
    retention.retention("things", by="pk")(lambda _before: model._base_manager.all())


@pytest.mark.parametrize(
    "model",
    [
        AuditRecord, ledger.Account, ledger.Transaction, ledger.Posting,
        splits.SplitOrder, splits.SplitLine, splits.FinalizeStep, splits.Lot,
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_no_rules")
def test_rule_over_what_must_stay_is_refused(model):
    with pytest.raises(MustStayError, match=rf"'things', .*{model.__name__}: Its rows must stay"):
        register(model)
    assert retention.all_rules() == []


@pytest.mark.usefixtures("_no_rules")
def test_rule_is_refused_whichever_comes_first():
    register(Session)
    with pytest.raises(MustStayError):
        retention.keep_for_ever(Session)


@pytest.mark.usefixtures("_no_rules")
def test_rule_that_would_take_along_what_must_stay_is_refused():
    register(Plan)
    with pytest.raises(MustStayError, match=r"PlanItem"):
        retention.keep_for_ever(PlanItem)


@pytest.mark.usefixtures("_no_rules")
def test_proxy_hides_nothing():
    class Disguised(ledger.Account):
        class Meta:
            app_label = "ledger"
            proxy = True

    try:
        with pytest.raises(MustStayError):
            register(Disguised)
    finally:
        del apps.all_models["ledger"]["disguised"]
        apps.clear_cache()


def test_rule_made_past_the_registry_is_refused_too():
    with pytest.raises(MustStayError):
        Rule("things", "pk", lambda _before: AuditRecord.objects.all())


def test_append_only_tables_refuse_by_themselves():
    with pytest.raises(AppendOnlyError):
        retention._delete(AuditRecord, [1], record=lambda: None, seal=lambda: None)
