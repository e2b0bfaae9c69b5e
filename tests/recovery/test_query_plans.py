"""Statements of the engine and of its operators have their index, however long the history."""

from datetime import UTC, datetime

import pytest

from recovery.models import AuditRecord, Job, JobRun
from tests.tables import Sql, let_plan, moment, plan_of, plans_of, reads_at_most, store_many, text

pytestmark = pytest.mark.django_db(transaction=True)  # ANALYZE commits

MANY, FEW, SHOWN = 50_000, 50, 20
RUN_ID = text(f"{'0' * 25}{{SUBSTR(10000000 + n, 2)}}")


@pytest.fixture
def runs():
    """Store many runs of five jobs, the newest of which are still running."""
    store_many(Job, 5, name=text("job{n % 5}"))
    store_many(
        JobRun,
        MANY,
        run_id=RUN_ID,
        job=text("job{n % 5}"),
        fence=Sql("n"),
        host="h",
        pid=1,
        status=Sql(f"CASE WHEN n > {MANY - 5} THEN 'running' ELSE 'ok' END"),
        started_at=moment("n"),
    )
    let_plan(Job, JobRun)


def test_lease_and_heartbeat_are_found_by_the_jobs_name(runs):
    job = Job.objects.filter(name="job1")
    for queryset in (job, job.leased_under(7), job.exclude(wake_requested_at=None)):
        plan = plan_of(queryset)
        assert not plan.scans, plan
    assert reads_at_most(4, lambda: job.renew(fence=7, ttl_s=15))


def test_runs_that_died_are_found_by_their_index(runs):
    died = JobRun.objects.died_before("job1", MANY + 1)
    assert died.count() == 1
    assert plan_of(died).indexes == {"jobrun_job_status_fence"}
    assert reads_at_most(2 * FEW, lambda: list(died))


def test_latest_endings_are_read_from_the_end(runs):
    def latest():
        assert len(JobRun.objects.latest_endings("job1", look_back=SHOWN)) == SHOWN

    (plan,) = plans_of(latest, JobRun._meta.db_table)
    assert plan.indexes == {"jobrun_job_id"}, plan
    assert not plan.sorts, plan
    assert reads_at_most(10 * SHOWN, latest)


def test_outage_is_looked_for_in_two_minutes_of_runs(runs):
    amid, now = datetime(2026, 1, 1, 6, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)

    def looked():
        assert not JobRun.objects.stood_still_after(amid, now=now)

    for plan in plans_of(looked, JobRun._meta.db_table):
        assert plan.indexes == {"jobrun_started_at"}, plan
    assert reads_at_most(2 * FEW, looked)


@pytest.fixture
def records():
    """Store many records, a few of which are about something else, by somebody else."""
    rare = f"n % {MANY // FEW} = 0"
    store_many(
        AuditRecord,
        MANY,
        actor=Sql(f"CASE WHEN {rare} THEN 'ann' ELSE 'system:test' END"),
        action=Sql(f"CASE WHEN {rare} THEN 'job-paused' ELSE 'outbox-entry-dead' END"),
        target_type=Sql(f"CASE WHEN {rare} THEN 'job' ELSE 'outbox-entry' END"),
        target_id=text("{n % 1000}"),
        run_id=RUN_ID,
    )
    let_plan(AuditRecord)


SEARCHES = [
    ({"target_type": "outbox-entry", "target_id": "7"}, "audit_target"),
    ({"target_type": "job", "target_id": "0"}, "audit_target"),
    ({"actor": "ann"}, "audit_actor"),
    ({"actor": "system:test"}, "audit_actor"),
    ({"action": "job-paused"}, "audit_action"),
    ({"action": "outbox-entry-dead"}, "audit_action"),
    ({"run_id": "0" * 31 + "7"}, "audit_run"),
]


def test_audit_is_searched_newest_first_by_its_indexes(records):
    for asked, index in SEARCHES:
        newest = AuditRecord.objects.filter(**asked).order_by("-id")
        for found in (newest[:SHOWN], newest.values_list("pk")[:SHOWN]):
            plan = plan_of(found)
            assert plan.indexes == {index}, (asked, plan)
            assert not plan.sorts, (asked, plan)
        assert reads_at_most(2 * FEW, lambda newest=newest: list(newest[:SHOWN])), asked
