"""Leases: the Redis key in front, the row always."""

import threading
import time
from contextlib import suppress

import pytest
from django.db import connection, transaction
from redis.exceptions import ResponseError

from recovery import leases, link, pauses, runner
from recovery.leases import HeldError, LeaseLostError, PausedError
from recovery.models import Job, JobRun
from recovery.registry import Batch
from tests.recovery.engine import (
    NAME,
    client,
    connects,
    expire,
    in_thread,
    in_threads,
    register,
    row,
    row_held,
)
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "lock:job:testJob"


@pytest.fixture(autouse=True)
def job(monkeypatch):
    return register(monkeypatch)


def pinged():
    with suppress(link.RedisDownError):
        return link.call(lambda it: it.ping())


def release(lease):
    Job.objects.filter(name=lease.name).release(
        fence=lease.fence, status="ok", error="", duration_s=0
    )
    lease.drop_key()


def test_second_holder_is_refused_and_told_who_holds(rung):
    lease = leases.acquire(NAME)
    with pytest.raises(HeldError, match=f"held by {leases.HOST}:"):
        leases.acquire(NAME)
    assert row().fence == lease.fence


def test_key_alone_refuses_a_second_holder(redis_up):
    client().set(KEY, "elsewhere:1:x")
    with pytest.raises(HeldError, match="held by elsewhere:1"):
        leases.acquire(NAME)
    assert row().fence == 0
    assert client().get(KEY) == b"elsewhere:1:x"


def test_row_refuses_a_second_holder_whose_redis_knows_nothing(redis_up):
    leases.acquire(NAME)
    client().flushall()
    with pytest.raises(HeldError):
        leases.acquire(NAME)
    assert client().get(KEY) is None, "the refused one leaves no key behind"


def test_key_is_literal_holds_the_token_and_expires(redis_up, settings):
    lease = leases.acquire(NAME)
    assert client().keys("*job*") == [KEY.encode()]
    assert client().get(KEY) == lease.token.encode()
    assert 0 < client().pttl(KEY) <= settings.JOB_LOCK_TTL_SEC * 1000


def test_fence_grows_by_one_with_every_acquisition(rung):
    fences = []
    for _ in range(3):
        lease = leases.acquire(NAME)
        fences.append(lease.fence)
        release(lease)
    assert fences == [1, 2, 3]
    assert row().fence == 3


def test_fence_does_not_grow_for_who_is_refused(rung):
    leases.acquire(NAME)
    for _ in range(3):
        with pytest.raises(HeldError):
            leases.acquire(NAME)
    assert row().fence == 1


def test_one_of_many_racing_holders_wins(rung):
    results = in_threads(*[lambda: leases.acquire(NAME)] * 5)
    assert [type(result) for result in results].count(HeldError) == 4
    assert row().fence == 1


def test_expired_lease_is_taken_over(rung):
    first = leases.acquire(NAME)
    expire()
    second = leases.acquire(NAME)
    assert second.fence == first.fence + 1
    assert row().lease_owner == second.token.rpartition(":")[0]


def test_lease_runs_out_by_the_databases_clock(no_redis, monkeypatch):
    leases.acquire(NAME)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(HeldError):
        leases.acquire(NAME)


def test_lost_lease_rolls_the_surrounding_batch_back(rung):
    lost = leases.acquire(NAME)
    expire()
    leases.acquire(NAME)

    def batch():
        with transaction.atomic():
            Job.objects.create(name="workOfTheBatch")
            lost.renew()

    with pytest.raises(LeaseLostError):
        batch()
    assert not Job.objects.filter(name="workOfTheBatch").exists()


def test_expired_lease_nobody_took_can_still_be_renewed(rung):
    lease = leases.acquire(NAME)
    expire()
    lease.renew()
    with pytest.raises(HeldError):
        leases.acquire(NAME)


def test_renewed_lease_lasts_a_whole_time_to_live_again(no_redis, settings):
    lease = leases.acquire(NAME)
    expire()
    lease.renew()
    left_s = (row().lease_expires_at - row().heartbeat_at).total_seconds()
    assert left_s == pytest.approx(settings.JOB_LOCK_TTL_SEC, abs=0.01)


def test_late_release_leaves_the_next_holders_lock(rung):
    late = leases.acquire(NAME)
    expire()
    current = leases.acquire(NAME)
    release(late)
    assert row().lease_owner
    if rung == "redis":
        assert client().get(KEY) == current.token.encode()


def test_late_extension_leaves_the_next_holders_key(redis_up):
    late = leases.acquire(NAME)
    expire()
    leases.acquire(NAME)
    client().persist(KEY)
    late.extend()
    assert client().pttl(KEY) == -1


def test_extension_gives_the_key_a_whole_time_to_live(redis_up, settings):
    lease = leases.acquire(NAME)
    client().pexpire(KEY, settings.JOB_LOCK_TTL_SEC * 400)
    lease.extend()
    assert client().pttl(KEY) > settings.JOB_LOCK_TTL_SEC * 500


def test_released_lock_can_be_had_at_once(rung):
    release(leases.acquire(NAME))
    assert leases.acquire(NAME).fence == 2


def test_stopped_redis_leaves_the_row(redis_up, caplog):
    redis_up.kill()
    lease = leases.acquire(NAME)
    assert link.is_down()
    with pytest.raises(HeldError):
        leases.acquire(NAME)
    release(lease)
    assert leases.acquire(NAME).fence == 2
    assert [r.getMessage() for r in caplog.records].count("redis_down") == 1


def test_frozen_redis_is_given_up_within_its_time_out(redis_up, settings, monkeypatch):
    settings.REDIS_TIMEOUT_SEC = 0.5
    redis_up.pause()
    tried = connects(monkeypatch)
    leases.acquire(NAME)
    assert len(tried) == 1, "one try"


def test_key_of_a_call_that_was_given_up_keeps_nobody_of_its_family_out(redis_up, settings):
    settings.REDIS_TIMEOUT_SEC = 1.0
    eventually(pinged)  # connected, it sends the command before it has to give up
    redis_up.pause()
    release(leases.acquire(NAME))
    redis_up.resume()
    link.reset()
    eventually(lambda: client().exists(KEY))
    assert leases.acquire(NAME).fence == 2
    with pytest.raises(HeldError, match=f"held by {leases.HOST}:"):
        leases.acquire(NAME)


def test_key_set_though_the_answer_was_lost_is_removed_with_the_refusal(redis_up, monkeypatch):
    def lose_answer(action):
        action(client())
        raise link.RedisDownError

    Job.objects.filter(name=NAME).pause()
    with monkeypatch.context() as patch:
        calls = iter([lose_answer])
        true_call = link.call
        patch.setattr(link, "call", lambda action: next(calls, true_call)(action))
        with pytest.raises(PausedError):
            leases.acquire(NAME)
    assert client().get(KEY) is None


def test_full_redis_counts_as_down_until_it_takes_writes_again(redis_up, monkeypatch):
    monkeypatch.setattr(link, "RETRY_AFTER_S", 0.0)
    client().config_set("maxmemory-policy", "noeviction")
    client().config_set("maxmemory", "1")
    try:
        lease = leases.acquire(NAME)
        assert link.is_down()
        lease.drop_key()  # a full server still deletes; that is not being back
        assert link.is_down()
    finally:
        client().config_set("maxmemory", "0")
    release(lease)
    assert not link.is_down()


def test_key_of_a_wrong_type_does_not_stop_the_job_nor_the_others(redis_up, caplog):
    client().lpush(KEY, "junk")
    with pytest.raises(ResponseError):
        client().get(KEY)
    assert leases.acquire(NAME).fence == 1
    assert not link.is_down()
    assert "redis_refused" in [r.getMessage() for r in caplog.records]


def test_flush_in_the_middle_of_a_run_lets_no_second_run_in(redis_up, monkeypatch):
    inner = []

    def work(_run):
        client().flushall()
        inner.append(in_thread(lambda: runner.run_job(NAME)))
        return Batch()

    register(monkeypatch, work)
    assert runner.run_job(NAME).status == "ok"
    assert (inner[0].status, inner[0].reason) == ("skipped", "locked")
    assert JobRun.objects.count() == 1


def test_paused_job_cannot_be_had_and_keeps_no_key(rung):
    pauses.pause(NAME, actor="cli:tester")
    with pytest.raises(PausedError, match="paused since"):
        leases.acquire(NAME)
    assert row().fence == 0
    if rung == "redis":
        assert client().get(KEY) is None


def test_missing_row_is_made(rung):
    Job.objects.all().delete()
    assert leases.acquire(NAME).fence == 1


def test_missing_row_is_made_once_by_racing_holders(rung):
    Job.objects.all().delete()
    results = in_threads(*[lambda: leases.acquire(NAME)] * 4)
    assert sorted(type(result).__name__ for result in results) == ["HeldError"] * 3 + ["Lease"]


@pytest.mark.mariadb
def test_row_locked_by_a_hanging_transaction_means_held(rung):
    with connection.cursor() as cursor:  # who waits has the row in the end, and is not refused
        cursor.execute("SET innodb_lock_wait_timeout = 1000")
    try:
        with row_held(), pytest.raises(HeldError):
            leases.acquire(NAME)
    finally:
        connection.close()
    assert leases.acquire(NAME).fence == 1


@pytest.mark.mariadb
def test_row_locked_for_a_moment_skips_no_run(no_redis, monkeypatch):
    let_go = threading.Event()
    tried = []

    def pause(_seconds):
        tried.append(True)
        let_go.set()
        holder.join(60)

    def hold():
        with transaction.atomic():
            Job.objects.select_for_update().get(name=NAME)
            held.set()
            let_go.wait(60)
        connection.close()

    held = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    monkeypatch.setattr(leases.time, "sleep", pause)
    assert leases.acquire(NAME).fence == 1
    assert tried


def test_time_of_a_lease_is_the_databases(no_redis, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    lease = leases.acquire(NAME)
    assert abs((lease.now() - row().last_started_at).total_seconds()) < 300
