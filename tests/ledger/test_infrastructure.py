"""Outages and races of two drains: nobody is charged, nothing is lost, nothing posted twice."""

import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.db.backends.base.base import BaseDatabaseWrapper

from ledger import parking, poison, posting, rows
from ledger.models import Account, OutboxEntry, Posting, Transaction
from ledger.posting import post_due, post_these
from recovery.clock import db_now
from recovery.errors import DEADLOCK, LOCK_WAIT_TIMEOUT, code_of
from tests.ledger.entries import (
    DEADLINE_S,
    WORLD,
    Background,
    assert_books_balance,
    balance,
    drain,
    fresh,
    into,
    junk,
    lines,
    make_due,
    policy,
    put,
    refusing,
    somebody_waits,
    state,
    store,
)
from tests.ledger.test_query_plans import analyze
from tests.ledger.test_volume import crowd
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]


def two_accounts():
    put("in", lines(("stock:OAK", "1"), ("stock:ASH", "1"), (WORLD, "-2")))
    drain()
    return sorted(Account.objects.get(code=code).pk for code in ("stock:ASH", "stock:OAK"))


def test_deadlock_is_tried_again_and_charges_nobody(second_connection, eventually, caplog):
    first, last = two_accounts()
    entry = put("k", lines(("stock:OAK", "1"), ("stock:ASH", "1"), (WORLD, "-2")))
    caplog.set_level("INFO", "recovery.errors")
    with second_connection.cursor() as cursor:
        cursor.execute("BEGIN")
        # The victim is who has changed less: let that be the drain.
        cursor.execute(
            "INSERT INTO recovery_sample (name, labels, value, at)"
            " SELECT CONCAT('x', seq), '', 0, NOW() FROM seq_1_to_1000"
        )
        cursor.execute("SELECT 1 FROM ledger_account WHERE id = %s FOR UPDATE", [last])
        drained = Background(lambda: post_due(policy(), limit=10))
        eventually(somebody_waits)
        cursor.execute("SELECT 1 FROM ledger_account WHERE id = %s FOR UPDATE", [first])
        cursor.execute("ROLLBACK")
    assert [it.id for it in drained.result().posted] == [entry.pk]
    assert [it.code for it in caplog.records if it.msg == "database_retry"] == [DEADLOCK]
    assert state(entry) == ("posted", 0, "")
    assert_books_balance()


def test_lock_wait_timeout_charges_nobody(second_connection, monkeypatch):
    two_accounts()
    entry = put("k", into("OAK", "1"))
    bad = put("bad", into("ELM", "-1"))
    before = fresh(entry)
    monkeypatch.setattr(posting, "with_retries", lambda action: action())
    with connection.cursor() as own, second_connection.cursor() as cursor:
        own.execute("SET innodb_lock_wait_timeout = 1")
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM ledger_account FOR UPDATE")
        with pytest.raises(OperationalError) as caught:
            post_due(policy(), limit=10)
        cursor.execute("ROLLBACK")
        own.execute("SET innodb_lock_wait_timeout = 10")
    assert code_of(caught.value) == LOCK_WAIT_TIMEOUT
    assert {state(it) for it in (entry, bad)} == {("pending", 0, "")}
    assert fresh(entry).next_attempt_at == before.next_attempt_at
    drain()
    assert (state(entry)[0], state(bad)[1]) == ("posted", 1)


def is_gone(cursor, number):
    """Tell whether a connection has ended, all that it did rolled back."""
    cursor.execute("SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = %s", [number])
    return not cursor.fetchone()


def cut(other):
    """Return what cuts this thread's connection the first time it is called."""
    left = [1]

    def kill():
        if left:
            left.pop()
            with connection.cursor() as own, other.cursor() as cursor:
                own.execute("SELECT CONNECTION_ID()")
                (number,) = own.fetchone()
                cursor.execute(f"KILL {number}")
                # Until then it holds its locks, and what it holds is passed by.
                eventually(lambda: is_gone(cursor, number))

    return kill


def test_connection_cut_before_the_commit_posts_the_batch_once(second_connection):
    good = [put(f"k{n}", into("OAK", "1")) for n in range(3)]
    bad = put("bad", into("ELM", "-1"))
    result = post_due(policy(seal=cut(second_connection)), limit=10)
    assert len(result.posted) == 3
    assert {state(it) for it in good} == {("posted", 0, "")}
    assert state(bad) == ("pending", 1, "insufficient_balance")
    assert balance("stock:OAK") == 3
    assert_books_balance()


def large_statements(other, monkeypatch, *, most):
    """Let the server refuse postings of more than ``most`` entries as it does: and hang up."""
    insert = rows.insert_postings

    def insert_or_hang_up(movements, accounts):
        found = list(movements)
        if len(found) > most:
            cut(other)()
            raise OperationalError(1153, "Got a packet bigger than 'max_allowed_packet' bytes")
        insert(found, accounts)

    monkeypatch.setattr(rows, "insert_postings", insert_or_hang_up)


def test_batch_that_is_too_large_for_the_server_is_halved(second_connection, monkeypatch):
    entries = [put(f"k{n}", into("OAK", "1")) for n in range(7)]
    large_statements(second_connection, monkeypatch, most=2)

    post_due(policy(), limit=10)
    assert {state(it) for it in entries} == {("posted", 0, "")}
    assert_books_balance()


def test_entry_that_alone_is_too_large_for_the_server_is_charged(second_connection, monkeypatch):
    entry = put("k", into("OAK", "1"))
    large_statements(second_connection, monkeypatch, most=0)
    post_due(policy(), limit=10)
    assert state(entry) == ("pending", 1, "unexpected")
    assert "max_allowed_packet" in fresh(entry).last_error


def test_cut_after_the_commit_loses_no_counts(second_connection, monkeypatch, caplog):
    put("head", into("ELM", "-1"), aggregate="lot:B")
    follower = put("f", into("OAK", "1"), aggregate="lot:B")
    put("k", into("OAK", "1"))
    kill, park = cut(second_connection), parking.park_behind

    def park_after_cut(*args, **kwargs):
        kill()
        return park(*args, **kwargs)

    monkeypatch.setattr(parking, "park_behind", park_after_cut)
    result = post_due(policy(), limit=10)
    assert (len(result.posted), len(result.failures), result.parked) == (1, 1, 1)
    assert state(follower) == ("pending", 0, "")


def test_followers_that_cannot_be_parked_do_not_undo_the_batch(monkeypatch, caplog):
    put("head", into("ELM", "-1"), aggregate="lot:B")
    follower = put("f", into("OAK", "1"), aggregate="lot:B")
    put("k", into("OAK", "1"))

    def refuse(*_args, **_kwargs):
        raise OperationalError(LOCK_WAIT_TIMEOUT, "Lock wait timeout exceeded")

    monkeypatch.setattr(posting, "with_retries", lambda action: action())
    with monkeypatch.context() as broken:
        broken.setattr(parking, "park_behind", refuse)
        assert len(post_due(policy(), limit=10).posted) == 1
    assert "followers_not_settled" in caplog.text
    assert drain().parked == 1
    assert state(follower) == ("pending", 0, "")


def test_deadlock_at_the_commit_of_one_half_does_not_lose_the_other():
    entries = [put(f"k{n}", into("OAK", "13" if n == 0 else "1")) for n in range(8)]
    failures = iter([None, None, OperationalError(DEADLOCK, "Deadlock found"), None])

    def seal():
        error = next(failures, None)
        if error:
            raise error

    with refusing("ledger_posting", "NEW.quantity = 13"):
        result = post_due(policy(seal=seal), limit=10)
    assert (len(result.posted), list(result.failures)) == (7, [entries[0].pk])
    assert {state(it)[1] for it in entries[1:]} == {0}
    assert_books_balance()


@pytest.fixture
def lost_answer(monkeypatch):
    """Let the answer to the first COMMIT that charges an entry be lost."""
    commit, left = BaseDatabaseWrapper._commit, [1]

    def commit_and_lose(self):
        commit(self)
        if left and OutboxEntry.objects.filter(attempts__gt=0).exists():
            left.pop()
            raise OperationalError(2013, "Lost connection to server during query")

    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", commit_and_lose)
    return left


def test_entry_found_by_halving_is_charged_once_though_the_answer_to_the_commit_is_lost(
    lost_answer,
):
    entry = put("k", into("OAK", "13"))
    other = put("other", into("OAK", "1"))
    with refusing("ledger_posting", "NEW.quantity = 13"):
        post_due(policy(), limit=10)
    assert not lost_answer
    assert state(entry) == ("pending", 1, "unexpected")
    assert state(other) == ("posted", 0, "")


def test_given_entry_is_charged_once_though_the_answer_to_the_commit_is_lost(lost_answer):
    entry = put("k", into("OAK", "-1"))
    post_these(policy(), [entry.pk])
    assert not lost_answer
    assert state(entry) == ("pending", 1, "insufficient_balance")


def test_entry_under_care_is_not_charged_for_a_lost_answer_to_the_commit(lost_answer):
    entry = put("k", into("OAK", "1"))
    with pytest.raises(OperationalError):
        poison.post_with_care(policy(), entry.pk)
    assert not lost_answer
    assert state(entry) == ("pending", 0, "")


# A drain that hangs with its entries locked


@contextmanager
def hung_drain(other, limit):
    """Let another drain hang after its claim; yield the ids of what it has locked."""
    analyze()
    with connection.cursor() as own, other.cursor() as cursor:
        own.execute("SET innodb_lock_wait_timeout = 1")
        cursor.execute("BEGIN")
        cursor.execute(rows.claim_sql(), [limit])
        yield {row[0] for row in cursor.fetchall()}
        cursor.execute("ROLLBACK")
        own.execute("SET innodb_lock_wait_timeout = 10")


def head_in_backoff(crowded=0):
    """Return a failed entry whose next attempt is far; ``crowded``: with so many followers."""
    head = put("head", into("OAK", "-1"), aggregate="lot:B")
    post_due(policy(), limit=10)
    later = db_now() + timedelta(seconds=600)
    OutboxEntry.objects.filter(pk=head.pk).update(next_attempt_at=later)
    head.refresh_from_db()
    if crowded:
        crowd(head, crowded)
    return head


@pytest.mark.parametrize("crowded", [0, 8_000])
def test_followers_that_a_hung_drain_has_locked_starve_nobody(second_connection, crowded):
    head_in_backoff(crowded)
    followers = store((f"n{n}", "lot:B", into("ASH", "1")) for n in range(130))
    healthy = put("healthy", into("ASH", "1"))
    with hung_drain(second_connection, 50) as locked:
        assert len(locked) == 50
        results = [post_due(policy(), limit=50) for _ in range(4)]
        assert state(healthy)[0] == "posted"
    assert sum(it.parked for it in results) == 80
    assert {state(it) for it in followers} == {("pending", 0, "")}


@pytest.mark.parametrize("new", [3, 60])
@pytest.mark.parametrize("crowded", [0, 8_000])
def test_parking_waits_for_no_entry_of_others(second_connection, new, crowded):
    head_in_backoff(crowded)
    others = store((f"u{n}", f"lot:u{n}", into("ASH", "1")) for n in range(2))
    store((f"n{n}", "lot:B", into("ASH", "1")) for n in range(new))
    with hung_drain(second_connection, 2) as locked:
        assert locked == {it.pk for it in others}
        assert post_due(policy(), limit=new).parked == new


@pytest.mark.parametrize("followers", [3, 200])
def test_release_leaves_what_a_hung_drain_has_locked(second_connection, followers):
    head = head_in_backoff()
    waiting = store((f"n{n}", "lot:B", into("ASH", "1")) for n in range(followers))
    with hung_drain(second_connection, 2) as locked:
        assert locked == {it.pk for it in waiting[:2]}
        parking.park_all_behind(head.pk, cap_s=60)
        assert parking.release(["lot:B"]) == followers - 2
        assert parking.release(["lot:B"]) == 0


@pytest.mark.parametrize("new", [3, 60])
def test_entries_for_newer_code_wait_for_no_entry_of_others(second_connection, new):
    others = store((f"u{n}", f"lot:u{n}", into("ASH", "1")) for n in range(2))
    newer = [junk(f"v{n}", {"schema_version": 2}) for n in range(new)]
    healthy = put("healthy", into("OAK", "1"))
    with hung_drain(second_connection, 2) as locked:
        assert locked == {it.pk for it in others}
        result = post_due(policy(), limit=100)
    assert [it.id for it in result.posted] == [healthy.pk]
    assert sorted(result.postponed) == [it.pk for it in newer]


# Two drains at once


def chain(aggregate, length):
    """Return entries of which each takes what the one before brought."""
    return [
        (f"{aggregate}:{n}", aggregate,
         lines((f"stock:{aggregate}-{n}", "1"),
               (WORLD if n == 0 else f"stock:{aggregate}-{n - 1}", "-1")))
        for n in range(length)
    ]  # fmt: skip


def test_two_drains_that_each_hold_what_the_other_waits_for_both_get_through(monkeypatch):
    x1, x2 = store(chain("X", 2))
    y1, y2 = store(chain("Y", 2))
    both_claimed = threading.Barrier(2, timeout=DEADLINE_S)
    barriers, met = parking.barriers, threading.local()

    def barriers_after_both_claimed(entries):
        if not getattr(met, "once", False):
            met.once = True
            assert len(entries) == 2
            both_claimed.wait()
        return barriers(entries)

    monkeypatch.setattr(parking, "barriers", barriers_after_both_claimed)

    def work(*mine):
        ids = [it.pk for it in mine]

        def is_posted():
            post_these(policy(), ids)
            return not OutboxEntry.objects.pending().filter(pk__in=ids).exists()

        eventually(is_posted)

    for it in [Background(lambda: work(x1, y2)), Background(lambda: work(y1, x2))]:
        it.result()
    assert {state(it) for it in (x1, x2, y1, y2)} == {("posted", 0, "")}
    assert_books_balance()


def test_many_small_batches_of_two_drains_keep_every_order(monkeypatch):
    monkeypatch.setattr(parking, "BUSY_HEAD_DELAY_S", 0.0)
    woven = [entry for step in zip(*(chain(f"A{a}", 8) for a in range(25)), strict=True)
             for entry in step]  # fmt: skip
    store(woven)
    start = threading.Barrier(2, timeout=DEADLINE_S)

    def work(limit):
        start.wait()
        deadline = time.monotonic() + DEADLINE_S / 2
        while OutboxEntry.objects.pending().exists():
            post_due(policy(), limit=limit)
            assert time.monotonic() < deadline

    for it in [Background(lambda limit=limit: work(limit)) for limit in (7, 11)]:
        it.result()
    assert not OutboxEntry.objects.exclude(status="posted", attempts=0).exists()
    assert Transaction.objects.count() == len(woven)
    assert Posting.objects.count() == 2 * len(woven)
    assert_books_balance()


def test_missing_accounts_made_by_two_drains_at_once_are_one_each():
    store((f"k{n}", f"lot:{n}", into(f"SKU-{n % 20}", "1")) for n in range(100))
    start = threading.Barrier(2, timeout=DEADLINE_S)

    def work():
        start.wait()
        drain(limit=10)

    for it in [Background(work), Background(work)]:
        it.result()
    make_due()
    drain()
    assert Account.objects.count() == 21
    assert balance(WORLD) == -100
    assert_books_balance()
