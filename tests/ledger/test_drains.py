"""The job with several drains: who is called, how large a batch is, who waits for whom."""

import gc
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.db import connection

from ledger import jobs, parking, rows
from ledger.models import OutboxEntry
from ledger.outbox import JOB
from ledger.posting import Result, post_due
from recovery import wakeups
from recovery.clock import db_now
from recovery.models import JobRun
from recovery.runner import run_job
from tests.ledger.entries import (
    DEADLINE_S,
    Background,
    drain,
    fresh,
    into,
    junk,
    policy,
    put,
    state,
    store,
)

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = f"{JOB}:2"


@pytest.fixture(autouse=True)
def small(settings):
    settings.JOB_OUTBOX_BATCH_SIZE = 10
    settings.JOB_OUTBOX_DRAINS = 2
    settings.JOB_TIME_BUDGET_SEC = 600  # however slow the machine is, a run works all there is


@pytest.fixture
def woken(monkeypatch):
    """Return the names of the jobs that are woken."""
    names = []
    monkeypatch.setattr(wakeups, "wake", names.append)
    return names


@pytest.fixture
def sizes(monkeypatch):
    """Return how many entries each batch asks for."""
    found = []
    genuine = jobs.post_due

    def noted(policy, *, limit):
        found.append(limit)
        return genuine(policy, limit=limit)

    monkeypatch.setattr(jobs, "post_due", noted)
    return found


def entries(count):
    store((f"k{n}", f"lot:{n}", into("OAK", "1")) for n in range(count))


@pytest.mark.parametrize(("count", "called"), [(9, []), (10, [SECOND]), (45, [SECOND])])
def test_next_drain_is_called_once_a_run_where_one_batch_is_not_enough(woken, count, called):
    entries(count)
    assert run_job(JOB).result == {"posted": count}
    assert woken == called


def test_collector_is_left_alone_within_batches_alone(monkeypatch):
    enabled = []
    genuine = rows.insert_postings

    def noted(*arguments):
        enabled.append(gc.isenabled())
        return genuine(*arguments)

    monkeypatch.setattr(rows, "insert_postings", noted)
    entries(15)
    run_job(JOB)
    assert enabled == [False, False]
    assert gc.isenabled()


def test_last_drain_calls_nobody(woken):
    entries(30)
    assert run_job(SECOND).result == {"posted": 30}
    assert woken == []


def test_only_drain_calls_nobody(woken, settings):
    settings.JOB_OUTBOX_DRAINS = 1
    entries(30)
    run_job(JOB)
    assert woken == []


def test_batches_grow_up_to_four_times_while_they_are_quick(sizes, monkeypatch):
    monkeypatch.setattr(jobs, "LONGEST_BATCH_S", 600.0)  # as on any machine
    entries(200)
    assert run_job(JOB).result == {"posted": 200}
    assert sizes[:4] == [10, 20, 40, 40]
    assert run_job(JOB).status == "ok"
    assert sizes[-1] == 10, "each run begins anew"


def test_batches_shrink_while_they_are_slow(sizes, monkeypatch, settings):
    settings.JOB_OUTBOX_BATCH_SIZE = 40
    monkeypatch.setattr(jobs, "LONGEST_BATCH_S", 0.0)
    entries(100)
    assert run_job(JOB).result == {"posted": 100}
    assert sizes[:4] == [40, 20, 10, 10]


def held(head):
    """Return a connection that has ``head`` locked, as a drain that is just posting it."""
    other = connection.copy()
    other.inc_thread_sharing()
    with other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"SELECT 1 FROM {rows.ENTRY} WHERE id = %s FOR UPDATE", [head.pk])
    return other


@pytest.mark.mariadb
def test_follower_of_an_entry_that_another_drain_is_posting_waits_for_no_tick(monkeypatch):
    monkeypatch.setattr(parking, "BUSY_HEAD_DELAY_S", parking.BUSY_HEAD_LEAST_S)  # however late
    head = put("head", into("OAK", "1"), aggregate="lot:A")
    follower = put("late", into("OAK", "1"), aggregate="lot:A")
    published, other, waits = fresh(follower).next_attempt_at, held(head), []

    def post_head_and_sleep(seconds):
        """Let the other drain get through while this one waits for it the first time."""
        waits.append(seconds)
        if len(waits) == 1:
            assert fresh(follower).next_attempt_at > published
            update = f"UPDATE {rows.ENTRY} SET status = 'posted' WHERE id = %s"
            with other.cursor() as cursor:
                cursor.execute(update, [head.pk])
                cursor.execute("COMMIT")
        time.sleep(seconds)

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=post_head_and_sleep)
    monkeypatch.setattr(jobs, "time", clock)
    try:
        assert run_job(JOB).result["posted"] == 1
    finally:
        other.close()
    assert state(follower) == ("posted", 0, "")
    assert JobRun.objects.count() == 1


@pytest.mark.mariadb
@pytest.mark.parametrize(("late_s", "waits_s"), [(0, 0.05), (4, 2), (3_600, 5)])
def test_followers_wait_the_longer_the_later_the_head_is(late_s, waits_s, monkeypatch):
    head = put("head", into("OAK", "1"), aggregate="lot:A")
    follower = put("late", into("OAK", "1"), aggregate="lot:A")
    now = db_now()
    OutboxEntry.objects.filter(pk=head.pk).update(next_attempt_at=now - timedelta(seconds=late_s))
    monkeypatch.setattr(parking, "db_now", lambda: now)
    other = held(head)
    try:
        result = post_due(policy(), limit=10)
    finally:
        other.close()
    assert result.parked == 1
    assert result.briefly is (waits_s < parking.BRIEFLY_S)
    assert fresh(follower).next_attempt_at == now + timedelta(seconds=waits_s)


def test_follower_of_a_failed_entry_is_not_waited_for():
    junk("head", {}, aggregate="lot:A")
    put("late", into("OAK", "1"), aggregate="lot:A")
    result = drain()
    assert (len(result.failures), result.parked, result.briefly) == (1, 1, False)


def test_parts_of_a_batch_tell_together_whether_somebody_waits_briefly():
    total = Result()
    total.add(Result(briefly=True))
    total.add(Result())
    assert total.briefly


@pytest.mark.mariadb
def test_two_drains_at_once_post_everything_once_and_share_it(monkeypatch):
    both, of_thread = threading.Barrier(2, timeout=DEADLINE_S), threading.local()
    genuine = jobs.post_due
    entries(600)
    seen = []

    def together(policy, *, limit):
        """Go on after the first batch when the other drain has had its own."""
        result = genuine(policy, limit=limit)
        if not hasattr(of_thread, "begun"):
            of_thread.begun = True
            both.wait()
        return result

    monkeypatch.setattr(jobs, "post_due", together)

    def work(name):
        outcome = run_job(name)
        seen.append(outcome.result.get("posted", 0))
        return outcome.status

    drains = [Background(lambda name=name: work(name)) for name in (JOB, SECOND)]
    assert [it.result() for it in drains] == ["ok", "ok"]
    assert sum(seen) == 600
    assert min(seen) > 0
    assert not OutboxEntry.objects.pending().exists()
