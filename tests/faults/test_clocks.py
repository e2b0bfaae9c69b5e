"""Hosts with wrong clocks: the database's clock decides, so nothing is early or late."""

import json
import signal
from collections import Counter
from datetime import datetime, timedelta

import pytest
from django_q.models import Schedule

from ledger.models import OutboxEntry, Transaction
from ledger.outbox import JOB
from recovery import registry
from recovery.clock import db_now, seconds_from_now
from recovery.models import AuditRecord, Job, JobRun
from recovery.runner import run_job
from splits.models import SplitOrder
from tests import clocks
from tests.end_to_end.test_periods import slot_at_or_before, slots
from tests.factories import SplitOrderFactory, hang
from tests.faults.ledger import QUICK, is_posted, posted, publish_one
from tests.ledger.entries import into, put
from tests.recovery.engine import expire, row
from tests.splits.state import assert_untouched
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

LOUD = {"LOG_LEVEL": "DEBUG"}
LONG_S = 600
TTL_S = 80
"""Shorter than any clock here is wrong by, and long enough for a slow machine."""
BACKOFF_S = 60
TTL = {"JOB_LOCK_TTL_SEC": str(TTL_S), "JOB_TASK_TIMEOUT_SEC": "300"}
BACKOFF = {"JOB_BACKOFF_BASE_SEC": str(BACKOFF_S)}
PERIOD_S = 5
WATCH_S = 17
MOMENT = timedelta(seconds=1)


@pytest.fixture(params=clocks.CLOCKS)
def skewed(request, tmp_path):
    """Return the environment of a process whose clock is wrong."""
    with clocks.wrong(request.param, tmp_path) as environment:
        yield environment | LOUD


def ended(finished, returncode=0):
    """Return the JSON of a process that had the wrong time all along."""
    assert finished.returncode == returncode, finished.stderr
    moments = [datetime.fromisoformat(line["timestamp"]) for line in logged(finished)]
    assert moments, "it logs nothing that shows its clock"
    off_s = [abs((moment - db_now()).total_seconds()) for moment in moments]
    assert min(off_s) > clocks.WRONG_BY_S, "libfaketime is not in force"
    return finished.json()


def logged(finished):
    lines = [line for line in finished.stderr.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


def events(finished):
    return Counter(line["event"] for line in logged(finished))


def lease_for(seconds):
    """Let somebody hold the outbox's lease for so long from now."""
    Job.objects.get_or_create(name=JOB)
    Job.objects.filter(name=JOB).update(
        lease_owner="elsewhere:1", lease_expires_at=seconds_from_now(seconds)
    )


def due_in(entry, seconds):
    OutboxEntry.objects.filter(pk=entry.pk).update(next_attempt_at=seconds_from_now(seconds))
    return entry


def test_lease_is_refused_while_it_lives_and_taken_once_it_expired(no_redis, manage, skewed):
    lease_for(LONG_S)
    refused = ended(manage("run_job", JOB, "--json", env=skewed), 3)
    assert (refused["status"], refused["reason"]) == ("skipped", "locked")
    assert row(JOB).lease_owner == "elsewhere:1"
    lease_for(-0.1)
    assert ended(manage("run_job", JOB, "--json", env=skewed))["status"] == "ok"


def test_lease_taken_lasts_as_long_as_any_and_is_lost_when_it_expired(no_redis, manage, skewed):
    stops = {"RECOVERY_FAULTPOINTS": "outbox.before_commit=stop@1", **TTL}
    entry = publish_one()
    holder = manage.start("run_job", JOB, "--json", env=skewed | stops)
    eventually(holder.is_stopped)
    left = row(JOB).lease_expires_at - db_now()
    assert timedelta(0) < left <= timedelta(seconds=TTL_S)
    assert run_job(JOB).reason == "locked"
    expire(JOB)
    assert run_job(JOB).status == "ok"
    holder.signal(signal.SIGCONT)
    assert ended(holder.finish(), 1)["status"] == "failed"
    assert not is_posted(entry), "its row was locked by the holder, who lost his lease"
    assert run_job(JOB).result["posted"] == 1


def test_entries_are_due_and_put_off_by_the_databases_clock(no_redis, manage, skewed):
    due, early = due_in(publish_one(), -0.1), due_in(publish_one(), LONG_S)
    refused = put("too-much", into("NONE-OF-IT", "-1"))
    before = db_now()
    told = ended(manage("run_job", JOB, "--json", env=skewed | BACKOFF))
    after = db_now()
    assert told["result"] == {"posted": 1, "failed": 1, "failed:insufficient_balance": 1}
    for entry in (due, early, refused):
        entry.refresh_from_db()
    assert (due.status, early.status, early.attempts) == ("posted", "pending", 0)
    assert before <= due.posted_at <= after
    assert Transaction.objects.get().posted_at == due.posted_at
    pause = timedelta(seconds=BACKOFF_S)
    assert before + pause <= refused.next_attempt_at <= after + pause
    run, job = JobRun.objects.get(job_id=JOB), row(JOB)
    assert before <= run.started_at <= run.finished_at <= after
    assert before <= job.heartbeat_at <= after
    assert 0 <= job.last_duration_s <= (after - before).total_seconds()


def test_orders_are_reset_neither_early_nor_late(manage, skewed):
    young, old = (hang(SplitOrderFactory(), age_s=age_s) for age_s in (100, 301))
    before = db_now()
    told = ended(manage("recover_stuck", "--json", env=skewed))
    after = db_now()
    assert told["recovered"] == [old.number]
    assert told["found"] == [old.number]
    young.refresh_from_db()
    old.refresh_from_db()
    assert (young.finalize_in_progress, old.finalize_in_progress) == (True, False)
    assert before <= old.next_finalize_at <= after
    assert before <= datetime.fromisoformat(old.recovered_at[0]) <= after
    assert before <= AuditRecord.objects.get(target_type="split-order").at <= after


def test_orders_are_due_and_put_off_by_the_databases_clock(manage, skewed):
    due, early = SplitOrderFactory(), SplitOrderFactory()
    SplitOrder.objects.filter(pk=early.pk).update(next_finalize_at=seconds_from_now(LONG_S))
    fails = {"RECOVERY_FAULTPOINTS": "finalize.before_step.consume_source=raise", **BACKOFF}
    before = db_now()
    told = ended(manage("run_job", "finalizeRetryWorker", "--json", env=skewed | fails))
    after = db_now()
    assert told["result"] == {"failed": 1}
    due.refresh_from_db()
    early.refresh_from_db()
    pause = timedelta(seconds=BACKOFF_S)
    assert before + pause <= due.next_finalize_at <= after + pause
    assert before <= due.finalize_started_at <= due.finalize_progress_at <= after
    assert (early.finalize_attempts, early.finalize_epoch) == (0, 0)
    assert_untouched(early)


@pytest.mark.redis
def test_clusters_with_wrong_clocks_work_and_leave_the_ticks_to_others(cluster, tmp_path):
    quick = QUICK | {"JOB_OUTBOX_PERIOD_SEC": str(PERIOD_S)}
    with (
        clocks.wrong(clocks.FAST, tmp_path) as fast,
        clocks.wrong(clocks.JUMPING, tmp_path) as jumping,
    ):
        wrong = [cluster(**quick, **fast), cluster(**quick, **jumping)]
        posted(publish_one())
        healthy = cluster(**quick)
        silence("finalizeRetryWorker")
        begin = db_now()
        eventually(lambda: db_now() > begin + timedelta(seconds=WATCH_S))
        assert_each_tick_once(begin, db_now() - MOMENT)
        entries = [publish_one() for _ in range(10)]
        for entry in entries:
            posted(entry)
        told = healthy.stop()
        assert told.json()["ticks"] > 0
        assert events(told)["tick_pulled_back"] == 1, "the one of silence()"
        assert events(told)["clock_off"] == 0
        for one in wrong:
            assert works_without_ticks(one)


def silence(name):
    """Do what a tick by a fast clock would: put the next one off for two hours."""
    ahead = db_now() + timedelta(hours=2)
    eventually(lambda: Schedule.objects.filter(name=name).update(next_run=ahead))
    period = timedelta(seconds=registry.get(name).period_s)
    eventually(lambda: Schedule.objects.get(name=name).next_run <= db_now() + period + MOMENT)


def assert_each_tick_once(begin, end):
    """Assert it of the ticks whose whole period was seen."""
    *ticks, last = slots(PERIOD_S, begin, end)
    assert len(ticks) >= 2
    runs = JobRun.objects.filter(job_id=JOB, started_at__gte=ticks[0], started_at__lt=last)
    starts = runs.values_list("started_at", flat=True)
    assert Counter(slot_at_or_before(at, PERIOD_S) for at in starts) == Counter(ticks)


def works_without_ticks(cluster):
    """Tell whether the cluster ran jobs, though it started none; it stops in order."""
    family = cluster.started.family()
    told = cluster.stop()
    assert ended(told)["ticks"] == 0
    assert ended(told)["restarts"] == 0
    assert events(told)["clock_off"] == 1
    return JobRun.objects.filter(pid__in=family).exists()
