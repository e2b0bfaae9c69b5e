"""What is past its days goes, a few rows at a time, and nobody waits for it."""

import copy
import io
import json
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models.functions import Now
from django_q.models import Task

from recovery import retention, runner
from recovery.clock import db_now
from recovery.models import AuditRecord, Job, JobRun
from recovery.pacing import next_size
from recovery.retention import LEAST_ROWS, LONGEST_S, MOST_ROWS, Rule
from tests.recovery.engine import NAME, in_thread

pytestmark = pytest.mark.django_db(transaction=True)
JOB = "auditArchive"
RULE = next(rule for rule in retention.all_rules() if rule.name == "job_runs")


@pytest.fixture(autouse=True)
def _no_redis(no_redis):
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
    return list(RULE.sweep(db_now(), seal=seal))


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
    assert sum(RULE.sweep(in_a_year, seal=lambda: None)) == 35


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

    assert retention.all_rules() == [Rule("things", "JOB_RUN_RETENTION_DAYS", "pk", old_things)]


def test_rules_of_all_apps_are_found():
    assert {rule.name for rule in retention.all_rules()} == {
        "expired_sessions", "failed_tasks", "job_runs", "outbox_entries", "plan_rows", "plans",
        "stuck_sightings",
    }  # fmt: skip


def records():
    """Return the records of what was deleted."""
    return AuditRecord.objects.filter(action="retention-applied").order_by("pk")


def test_deleting_is_on_the_record_once_a_rule_and_run(monkeypatch):
    monkeypatch.setattr(retention, "FIRST_ROWS", 2)
    monkeypatch.setattr(retention, "MOST_ROWS", 2)
    aged(100, 101, 102, 103, 104)
    task("old", 7.01)
    outcome = runner.run_job(JOB)
    assert outcome.result == {"job_runs_deleted": 5, "failed_tasks_deleted": 1}
    run = JobRun.objects.get(job_id=JOB)
    tasks, runs = records()
    assert [it.target_id for it in (tasks, runs)] == ["failed_tasks", "job_runs"]
    assert (runs.actor, runs.run_id) == ("system:auditArchive", run.run_id)
    assert (runs.target_type, runs.reason) == ("retention", "JOB_RUN_RETENTION_DAYS=7")
    assert runs.evidence["table"] == "recovery_jobrun"
    before = datetime.fromisoformat(runs.evidence["before"])
    assert timedelta(days=7) <= db_now() - before < timedelta(days=7.1)
    assert runner.run_job(JOB).result == {}
    assert records().count() == 2


@contextmanager
def unwritable():
    """Let the database itself refuse every audit record."""
    refusal = {
        "sqlite": "BEGIN SELECT RAISE(ABORT, 'no records'); END",
        "mysql": "FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no records'",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TRIGGER no_records BEFORE INSERT ON recovery_auditrecord {refusal}")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER no_records")


def test_nothing_is_deleted_that_cannot_be_put_on_the_record():
    aged(100, 101)
    with unwritable():
        outcome = runner.run_job(JOB)
    assert (outcome.status, "no records" in outcome.reason) == ("failed", True)
    assert len(left()) == 2
    assert runner.run_job(JOB).result == {"job_runs_deleted": 2}


def test_preview_says_what_the_next_run_deletes():
    aged(100, 101, 1)
    task("old", 7.01)
    out = io.StringIO()
    call_command("audit", "archive", "--dry-run", "--json", stdout=out)
    document = json.loads(out.getvalue())
    seen = {f"{it['name']}_deleted": it["rows"] for it in document["rules"] if it["rows"]}
    assert len(document["rules"]) == len(retention.all_rules())
    assert len(left()) == 3
    assert runner.run_job(JOB).result == seen == {"job_runs_deleted": 2, "failed_tasks_deleted": 1}


def test_preview_of_records_is_what_the_next_run_archives(settings, tmp_path):
    stores = copy.deepcopy(settings.STORAGES)
    stores["audit_archive"]["OPTIONS"]["location"] = str(tmp_path)
    settings.STORAGES = stores
    for days in (100, 100, 101):
        record = {"actor": "a", "action": "b", "target_type": "c", "target_id": "d"}
        AuditRecord(at=db_now() - timedelta(days=days), **record).save()
    runner.run_job("auditSeal")
    out = io.StringIO()
    call_command("audit", "archive", "--dry-run", stdout=out)
    assert "audit records to archive: 3, of 2 days" in out.getvalue()
    assert runner.run_job(JOB).result["records_archived"] == 3


KEPT = [
    "AuditRecord",
    "AuditSeal",
    "AuditSealSpan",
    "AuditArchive",
    "Account",
    "Transaction",
    "Posting",
]


@pytest.mark.parametrize("name", KEPT)
def test_what_must_stay_no_rule_deletes(name):
    model = next(it for it in apps.get_models() if it.__name__ == name)
    rule = Rule("wrong", "", "pk", lambda _before: model._default_manager.all())
    with pytest.raises(retention.MustStayError, match=model._meta.db_table):
        next(rule.sweep(db_now(), seal=lambda: None))


def test_no_rule_is_about_what_must_stay():
    for rule in retention.all_rules():
        retention.require_deletable(rule, db_now())
