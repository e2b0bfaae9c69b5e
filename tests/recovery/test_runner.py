"""One guarded run: what it records, when it ends, what it leaves for the next."""

import os
import signal
import time

import pytest
from django.db import OperationalError, connection
from django_q.exceptions import TimeoutException
from django_q.models import OrmQ
from prometheus_client import REGISTRY

from recovery import leases, runner, stopping, wakeups
from recovery.models import Job, JobRun, RunStatus
from recovery.registry import Batch, UnknownJobError
from recovery.runner import run_job
from tests.recovery.engine import NAME, client, expire, in_thread, register, row, statuses

pytestmark = pytest.mark.django_db(transaction=True)


def counted(metric, **labels):
    return REGISTRY.get_sample_value(metric, {"job": NAME, **labels}) or 0.0


def queued():
    """Return how many wake-ups wait on the rung in use."""
    from django.conf import settings

    return client().llen("django_q:recovery:q") if settings.REDIS_URL else OrmQ.objects.count()


def test_run_is_recorded_with_its_counts(rung, monkeypatch):
    batches = iter([Batch({"posted": 2}, more=True), Batch({"posted": 1, "failed": 1})])
    register(monkeypatch, lambda _run: next(batches))
    outcome = run_job(NAME)
    assert outcome.as_dict() | {"duration_s": 0} == {
        "job": NAME,
        "status": "ok",
        "reason": "",
        "duration_s": 0,
        "result": {"posted": 3, "failed": 1},
    }
    run = JobRun.objects.get()
    assert (run.status, run.fence, run.host, run.pid) == ("ok", 1, leases.HOST, os.getpid())
    assert run.counts == {"posted": 3, "failed": 1}
    assert run.started_at <= run.finished_at
    job = row()
    assert (job.last_status, job.last_error, job.lease_owner) == ("ok", "", "")
    assert job.lease_expires_at is None
    assert job.last_started_at <= job.last_finished_at


def test_failing_job_is_recorded_and_the_worker_goes_on(rung, monkeypatch, caplog):
    def work(_run):
        raise RuntimeError("the shelf fell over \udcff")

    runs, failures = counted("job_runs_total"), counted("job_failures_total")
    register(monkeypatch, work)
    outcome = run_job(NAME)
    assert (outcome.status, outcome.again) == ("failed", False)
    assert row().last_status == "failed"
    assert row().last_error.startswith("RuntimeError: the shelf fell over")
    assert JobRun.objects.get().error == row().last_error
    assert (counted("job_runs_total"), counted("job_failures_total")) == (runs + 1, failures + 1)
    (failed,) = (r for r in caplog.records if r.getMessage() == "run_failed")
    assert failed.exc_info
    assert (failed.code, failed.attempt) == ("RuntimeError", 1)

    register(monkeypatch)
    assert run_job(NAME).status == "ok"
    assert row().last_error == ""


def test_failing_task_returns_to_the_queue_worker(rung, monkeypatch):
    register(monkeypatch, lambda _run: 1 / 0)
    assert runner.run_task(NAME)["status"] == "failed"


def test_what_a_failed_batch_did_not_commit_is_not_counted(no_redis, monkeypatch):
    def work(run):
        if run.counts:
            raise RuntimeError("the second one")
        return Batch({"posted": 1}, more=True)

    register(monkeypatch, work)
    run_job(NAME)
    assert JobRun.objects.get().counts == {"posted": 1}


def test_skipped_run_touches_nothing(rung, monkeypatch, settings):
    settings.JOB_OUTBOX_PERIOD_SEC = 60  # as long as the flag stays at most
    register(monkeypatch)
    leases.acquire(NAME)
    wakeups._set_flag(NAME)
    before, pending = Job.objects.filter(name=NAME).values().get(), wakeups.pending(NAME)
    keys = sorted(client().keys("*")) if rung == "redis" else []
    skipped = counted("job_skipped_total", reason="locked")
    outcome = run_job(NAME)
    assert (outcome.status, outcome.reason, outcome.again) == ("skipped", "locked", False)
    assert Job.objects.filter(name=NAME).values().get() == before
    assert wakeups.pending(NAME) is pending is True
    assert not JobRun.objects.exists()
    if rung == "redis":
        assert sorted(client().keys("*")) == keys
    assert counted("job_skipped_total", reason="locked") == skipped + 1


def test_run_without_any_rung_is_skipped_and_counted(redis_up, monkeypatch):
    worked = []
    register(monkeypatch, lambda _run: worked.append(1) or Batch())
    redis_up.kill()

    def gone(_name):
        raise OperationalError(2002, "no server")

    monkeypatch.setattr(leases, "lock_row", gone)
    skipped = counted("job_skipped_total", reason="no_lock")
    assert run_job(NAME).status == "skipped"
    assert not worked
    assert counted("job_skipped_total", reason="no_lock") == skipped + 1


def test_run_that_cannot_be_recorded_does_not_begin(rung, monkeypatch):
    register(monkeypatch)

    def refuse(**_kwargs):
        raise OperationalError(1290, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr(JobRun.objects, "create", refuse)
        assert run_job(NAME).status == "skipped"
    assert (row().fence, row().lease_owner) == (0, "")
    assert run_job(NAME).status == "ok"


def test_spent_budget_ends_the_run_and_asks_for_another(rung, monkeypatch, settings):
    settings.JOB_TIME_BUDGET_SEC = 0.0
    calls = []
    register(monkeypatch, lambda _run: calls.append(1) or Batch({"n": 1}, more=True))
    outcome = run_job(NAME)
    assert (outcome.status, outcome.again, len(calls)) == ("ok", True, 1)
    assert queued() == 1


def test_nothing_left_asks_for_no_other_run(rung, monkeypatch, settings):
    settings.JOB_TIME_BUDGET_SEC = 0.0
    register(monkeypatch)
    assert not run_job(NAME).again
    assert queued() == 0


def test_wake_up_during_the_run_leads_to_another(rung, monkeypatch):
    def work(_run):
        wakeups.wake(NAME)
        return Batch()

    register(monkeypatch, work)
    assert run_job(NAME).again
    assert queued() == 2, "the producer's, which may find the lock held, and the run's own"


def test_wake_up_during_a_failing_run_is_not_lost(rung, monkeypatch):
    def work(_run):
        wakeups.wake(NAME)
        raise RuntimeError("no")

    register(monkeypatch, work)
    assert run_job(NAME).again
    assert queued() == 2


def test_asked_to_stop_it_ends_after_its_batch_and_hands_the_rest_on(rung, monkeypatch):
    calls = []

    def work(_run):
        calls.append(1)
        stopping.ask()
        return Batch({"n": 1}, more=True)

    register(monkeypatch, work)
    outcome = run_job(NAME)
    assert (outcome.status, len(calls)) == ("ok", 1)
    assert statuses() == ["ok"]
    assert row().lease_owner == ""
    assert queued() == 1, "for another host, or for this one after its start"


def test_runs_that_died_are_buried_and_counted_by_the_next(rung, monkeypatch):
    deaths = []
    register(monkeypatch, lambda run: deaths.append(run.deaths) or Batch())
    for _ in range(2):
        with leases.taking(NAME) as lease:
            runner._open(runner.registry.get(NAME), lease)
        expire()
    run_job(NAME)
    run_job(NAME)
    assert deaths == [2, 0]
    assert statuses() == ["died", "died", "ok", "ok"]
    assert all(JobRun.objects.values_list("finished_at", flat=True))


def test_living_run_is_not_buried_by_a_skipped_one(rung, monkeypatch):
    register(monkeypatch)
    with leases.taking(NAME) as lease:
        runner._open(runner.registry.get(NAME), lease)
    run_job(NAME)
    assert statuses() == ["running"]


def test_failed_run_between_deaths_interrupts_their_count_but_is_an_attempt(no_redis, monkeypatch):
    def work(run):
        seen.append((run.deaths, run.attempt))
        return Batch()

    seen: list[tuple[int, int]] = []
    register(monkeypatch, work)
    endings = [RunStatus.OK, RunStatus.DIED, RunStatus.FAILED, RunStatus.DIED]
    for fence, status in enumerate(endings, start=1):
        JobRun.objects.create(job_id=NAME, fence=fence, host="h", pid=1, status=status)
    run_job(NAME)
    run_job(NAME)
    assert seen == [(1, 4), (0, 1)]


def test_time_out_of_the_queue_closes_the_run_and_goes_on_up(rung, monkeypatch):
    def work(_run):
        raise TimeoutException("Task exceeded maximum timeout value (90 seconds)")

    register(monkeypatch, work)
    with pytest.raises(SystemExit):
        run_job(NAME)
    assert statuses() == ["failed"]
    assert row().last_error.startswith("TimeoutException: Task exceeded")
    assert row().lease_owner == ""
    if rung == "redis":
        assert client().get("lock:job:testJob") is None


def test_time_out_by_alarm_in_a_transaction_rolls_it_back(no_redis, monkeypatch):
    from django.db import transaction
    from django_q.timeout import TimeoutHandler

    def work(_run):
        with transaction.atomic():
            Job.objects.create(name="halfDone")
            signal.raise_signal(signal.SIGALRM)
        return Batch()

    register(monkeypatch, work)
    with pytest.raises(SystemExit), TimeoutHandler(60):
        run_job(NAME)
    assert not Job.objects.filter(name="halfDone").exists()
    assert statuses() == ["failed"]


def test_lost_lease_fails_the_run_and_leaves_the_new_holders_row(rung, monkeypatch):
    def work(run):
        expire()
        in_thread(lambda: leases.acquire(NAME))
        run.renew_lease()
        return Batch()

    register(monkeypatch, work)
    outcome = run_job(NAME)
    assert outcome.status == "failed"
    assert "lost" in outcome.reason
    assert (row().fence, row().last_status) == (2, "running")
    assert row().lease_owner


def test_unknown_job_is_an_error():
    with pytest.raises(UnknownJobError, match="there are: "):
        run_job("noSuchJob")


def test_paused_job_is_not_run(rung, monkeypatch):
    worked = []
    register(monkeypatch, lambda _run: worked.append(1) or Batch())
    Job.objects.filter(name=NAME).pause()
    outcome = run_job(NAME)
    assert (outcome.status, outcome.reason) == ("skipped", "paused")
    assert not worked
    assert not JobRun.objects.exists()


def test_idle_run_costs_few_queries(no_redis, monkeypatch, django_assert_max_num_queries):
    register(monkeypatch)
    run_job(NAME)
    with django_assert_max_num_queries(14):  # transactions' own statements included
        run_job(NAME)


def test_another_batch_costs_one_read_of_the_engine(no_redis, monkeypatch):
    def queries(batches):
        left = iter(range(batches))
        register(monkeypatch, lambda _run: Batch(more=next(left) < batches - 1))
        before = len(connection.queries_log)
        run_job(NAME)
        return len(connection.queries_log) - before

    connection.force_debug_cursor = True
    connection.queries_log.clear()  # it keeps so many and no more
    try:
        queries(1)
        assert queries(6) - queries(1) == 5, "one look at the wake-up column a batch"
    finally:
        connection.force_debug_cursor = False


def test_run_is_over_once_its_budget_is_spent_or_a_stop_is_asked(no_redis, monkeypatch, settings):
    seen = []

    def work(run):
        seen.append(run.over())
        run.started = time.monotonic() - settings.JOB_TIME_BUDGET_SEC
        seen.append(run.over())
        run.started = time.monotonic()
        stopping.ask()
        seen.append(run.over())
        return Batch()

    register(monkeypatch, work)
    run_job(NAME)
    assert seen == [False, True, True]
