"""Wake-ups: many commits are one task, and none is lost."""

import pytest
from django.conf import settings as configured
from django.db import OperationalError, transaction
from django_q.models import OrmQ

from recovery import leases, link, runner, wakeups
from recovery.models import Job
from recovery.registry import Batch
from tests.recovery.engine import (
    NAME,
    client,
    in_thread,
    in_threads,
    register,
    row,
    row_held,
    statuses,
)

pytestmark = pytest.mark.django_db(transaction=True)

FLAG = "wake:job:testJob"


@pytest.fixture(autouse=True)
def job(monkeypatch, settings):
    settings.JOB_OUTBOX_PERIOD_SEC = 60  # a flag stays as long
    return register(monkeypatch)


def queued():
    return client().llen("django_q:recovery:q") if configured.REDIS_URL else OrmQ.objects.count()


def commit():
    with transaction.atomic():
        wakeups.wake_on_commit(NAME)


def test_many_commits_are_one_task(rung):
    for _ in range(5):
        commit()
    assert queued() == 1


def test_commits_of_many_threads_are_one_task(rung):
    in_threads(*[commit] * 5)
    assert queued() == 1


def test_many_wishes_in_one_transaction_are_one_task(rung):
    with transaction.atomic():
        for _ in range(5):
            wakeups.wake_on_commit(NAME)
        assert queued() == 0, "nothing is sent before the commit"
    assert queued() == 1


def test_rolled_back_transaction_wakes_nobody(rung):
    with transaction.atomic():
        wakeups.wake_on_commit(NAME)
        transaction.set_rollback(True)
    assert queued() == 0
    assert not wakeups.pending(NAME)


def test_flag_is_cleared_before_each_claim(rung, monkeypatch):
    pending = []

    def work(_run):
        pending.append(wakeups.pending(NAME))
        if len(pending) < 3:
            commit()
        return Batch(more=len(pending) < 3)

    register(monkeypatch, work)
    commit()
    assert not runner.run_job(NAME).again
    assert pending == [False, False, False]


def test_commit_after_a_run_is_sent_again(rung):
    commit()
    runner.run_job(NAME)
    commit()
    assert queued() == 2


def test_commit_between_the_last_claim_and_the_release_leads_to_another_run(rung, monkeypatch):
    release = runner._record

    def commit_just_before(*args):
        in_thread(commit)
        in_thread(lambda: runner.run_job(NAME))  # the commit's own task finds the lock held
        release(*args)

    monkeypatch.setattr(runner, "_record", commit_just_before)
    runner.run_job(NAME)
    assert statuses() == ["ok"]
    assert queued() == 2, "the commit's own, spent in vain, and the one for the other run"


def test_flag_of_a_lost_task_expires_after_a_period_or_a_minute(redis_up, settings):
    settings.JOB_OUTBOX_PERIOD_SEC = 30
    commit()
    assert 0 < client().pttl(FLAG) <= 30_000
    client().delete(FLAG)
    settings.JOB_OUTBOX_PERIOD_SEC = 3_600
    commit()
    assert 0 < client().pttl(FLAG) <= 60_000


def test_stopped_redis_leaves_the_column_and_the_table(redis_up):
    redis_up.kill()
    commit()
    commit()
    assert row().wake_requested_at
    assert OrmQ.objects.count() == 1


def test_redis_that_dies_between_flag_and_clearing_costs_no_wake_up(redis_up):
    commit()
    redis_up.kill()
    commit()
    assert wakeups.pending(NAME)
    assert OrmQ.objects.count() == 1
    runner.run_job(NAME)
    assert not wakeups.pending(NAME)


def test_run_that_sees_redis_clears_the_column_too(redis_up):
    Job.objects.filter(name=NAME).ask_to_wake()
    runner.run_job(NAME)
    assert row().wake_requested_at is None


def test_flag_in_the_column_is_found_with_redis_up(redis_up):
    Job.objects.filter(name=NAME).ask_to_wake()
    assert wakeups.pending(NAME)


def test_set_flag_costs_a_producer_no_write(no_redis, django_assert_num_queries):
    commit()
    with django_assert_num_queries(1):
        wakeups.wake(NAME)


def test_missing_row_is_made_for_the_flag(no_redis):
    Job.objects.all().delete()
    commit()
    assert queued() == 1
    assert row().wake_requested_at


@pytest.mark.mariadb
def test_producer_does_not_wait_for_a_holder_that_hangs(no_redis):
    with row_held():
        commit()  # innodb_lock_wait_timeout would make it an error after 10 s
        assert queued() == 0
    commit()
    assert queued() == 1


def test_database_that_is_gone_costs_the_producer_nothing(no_redis, monkeypatch, caplog):
    def gone(_name):
        raise OperationalError(2006, "gone away")

    monkeypatch.setattr(wakeups, "_asked_in_row", gone)
    wakeups.wake(NAME)
    assert [record.getMessage() for record in caplog.records] == ["wake_up_not_sent"]


def test_resumed_job_is_woken_though_its_flag_was_set_meanwhile(rung):
    from recovery import pauses

    pauses.pause(NAME, actor="cli:tester")
    commit()
    assert runner.run_job(NAME).reason == "paused"
    assert wakeups.pending(NAME)
    pauses.resume(NAME, actor="cli:tester")
    assert queued() == 2


def test_racing_producer_and_holder_lose_nothing(rung, monkeypatch):
    """Whatever the interleaving: after a commit, a later claim or a queued task sees it."""
    monkeypatch.setattr(leases, "PATIENCE_S", (0.05,) * 600)  # a slow disk leaves it to no tick
    committed, claimed = [], []

    def work(_run):
        claimed.append(len(committed))
        return Batch()

    def produce():
        for number in range(10):
            committed.append(number)
            commit()

    def consume():
        for _ in range(10):
            runner.run_job(NAME)

    register(monkeypatch, work)
    assert in_threads(produce, consume) == [None, None]
    if claimed[-1] < len(committed):
        assert wakeups.pending(NAME)
        assert queued() > 0


def test_holder_is_not_shut_out_by_a_flag_it_cannot_clear(redis_up):
    commit()
    lease = leases.acquire(NAME)
    redis_up.kill()
    wakeups.clear(NAME)
    assert link.is_down()
    lease.renew()
