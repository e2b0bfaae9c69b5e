"""Order within an aggregate: followers wait for their head, cheaply, and nobody else does."""

from datetime import timedelta

import pytest
from django.db import connection, transaction

from ledger import parking
from ledger.models import EntryStatus, OutboxEntry, Transaction
from ledger.posting import post_due, post_these
from recovery.clock import db_now
from recovery.leases import LeaseLostError
from tests.ledger.entries import (
    WORLD,
    assert_books_balance,
    drain,
    fresh,
    into,
    junk,
    lines,
    make_due,
    policy,
    put,
    state,
    store,
)

pytestmark = pytest.mark.django_db

B = "lot:B"


def head_and_followers(count=3):
    """Return an entry that cannot be posted yet, and those behind it in its aggregate."""
    head = put("head", into("OAK", "-1"), aggregate=B)
    return head, [put(f"f{n}", into("ASH", "1"), aggregate=B) for n in range(count)]


def heal():
    """Let the head be postable."""
    put("heal", into("OAK", "1"))
    drain()


def due_at(**moments):
    """Set when entries, given by key, are due: in so many seconds."""
    for key, seconds in moments.items():
        moment = db_now() + timedelta(seconds=seconds)
        OutboxEntry.objects.filter(event_key=key).update(next_attempt_at=moment)


def test_followers_of_a_failing_head_wait_for_its_next_attempt_untried():
    head, followers = head_and_followers()
    result = drain()
    assert result.parked == 3
    assert state(head) == ("pending", 1, "insufficient_balance")
    assert {state(it) for it in followers} == {("pending", 0, "")}
    assert {fresh(it).next_attempt_at for it in followers} == {fresh(head).next_attempt_at}


@pytest.mark.parametrize("limit", [1, 2, 500])
def test_followers_that_did_not_fit_into_the_batch_are_parked_too(limit):
    head, followers = head_and_followers()
    drain(limit=limit)
    assert {fresh(it).next_attempt_at for it in followers} == {fresh(head).next_attempt_at}
    assert {state(it)[1] for it in followers} == {0}


def test_followers_of_a_dead_head_wait_for_the_cap():
    head, followers = head_and_followers()
    before = db_now()
    drain(max_attempts=1, cap_s=600)
    assert state(head)[0] == "dead"
    cap = timedelta(seconds=600)
    for it in followers:
        assert before + cap <= fresh(it).next_attempt_at <= db_now() + cap
        assert state(it) == ("pending", 0, "")


def test_follower_published_later_waits_too():
    head, _ = head_and_followers(0)
    drain()
    late = put("late", into("ASH", "1"), aggregate=B)
    result = drain()
    assert (result.posted, result.parked) == ([], 1)
    assert fresh(late).next_attempt_at == fresh(head).next_attempt_at
    assert state(late) == ("pending", 0, "")


def test_other_aggregates_are_not_held_back():
    head_and_followers()
    other = put("other", into("ASH", "1"))
    drain()
    assert state(other)[0] == "posted"


def test_posted_and_discarded_entries_hold_nobody_back():
    first = put("first", into("OAK", "1"), aggregate=B)
    drain()
    second = put("second", into("OAK", "-5"), aggregate=B)
    OutboxEntry.objects.filter(pk=second.pk).update(status=EntryStatus.DISCARDED)
    third = put("third", into("OAK", "1"), aggregate=B)
    drain()
    assert [state(it)[0] for it in (first, second, third)] == ["posted", "discarded", "posted"]


def test_followers_come_back_at_once_when_the_head_is_posted():
    head, followers = head_and_followers()
    drain()
    heal()
    due_at(head=-1)
    result = post_due(policy(), limit=500)
    assert [it.id for it in result.posted] == [head.pk]
    assert result.released == 3
    drain()
    assert {state(it) for it in followers} == {("posted", 0, "")}
    assert_books_balance()


def test_release_leaves_entries_of_their_own_backoff_alone():
    _, (first, second, _third) = head_and_followers()
    OutboxEntry.objects.filter(pk=first.pk).update(attempts=2)
    due_at(f0=100, f1=100)
    assert parking.release([B]) == 1
    assert fresh(first).next_attempt_at > db_now()
    assert fresh(second).next_attempt_at <= db_now()


def test_release_touches_no_other_aggregate():
    put("other", into("OAK", "1"))
    due_at(other=100)
    assert parking.release([B]) == 0


def test_head_that_heals_does_not_cut_the_backoff_of_the_next_one_short():
    head, _ = head_and_followers(0)
    second = put("second", into("ELM", "-1"), aggregate=B)
    third = put("third", into("ASH", "1"), aggregate=B)
    drain()
    heal()
    make_due()
    before = db_now()
    result = post_due(policy(), limit=500)
    assert ([it.id for it in result.posted], list(result.failures)) == ([head.pk], [second.pk])
    assert fresh(second).next_attempt_at >= before + timedelta(seconds=5)
    assert fresh(third).next_attempt_at == fresh(second).next_attempt_at
    assert result.released == 0


def test_released_followers_are_due_in_the_very_next_claim():
    _, followers = head_and_followers()
    due_at(f0=100, f1=100, f2=100)
    OutboxEntry.objects.filter(event_key="head").update(status=EntryStatus.DISCARDED)
    parking.release([B])
    assert len(post_due(policy(), limit=500).posted) == len(followers)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_due_head_is_reached_though_followers_published_meanwhile_come_first(limit):
    """They became due before the head's retry did: they must not fill every batch."""
    head, followers = head_and_followers(5)
    drain(limit=1)
    heal()
    due_at(head=-1, **{f"f{n}": -5 for n in range(5)})
    drain(limit=limit)
    assert state(head) == ("posted", 1, "")
    assert {state(it) for it in followers} == {("posted", 0, "")}


def test_batch_of_blocked_entries_does_not_spin():
    head, _ = head_and_followers(20)
    OutboxEntry.objects.filter(pk=head.pk).update(status=EntryStatus.DEAD)
    result = post_due(policy(), limit=10)
    assert (result.claimed, result.parked) == (10, 10)
    assert drain(rounds=3).posted == []


def test_from_fifty_followers_on_all_are_parked_at_once(monkeypatch):
    monkeypatch.setattr(parking, "AT_ONCE", 7)
    head, followers = head_and_followers(60)
    OutboxEntry.objects.filter(pk=head.pk).update(status=EntryStatus.DEAD)
    result = post_due(policy(), limit=50)
    assert (result.claimed, result.parked) == (50, 60)
    assert all(fresh(it).next_attempt_at > db_now() for it in followers)
    assert parking.release([B]) == 60
    assert all(fresh(it).next_attempt_at <= db_now() for it in followers)


def test_parking_never_brings_an_entry_forward():
    _, followers = head_and_followers(1)
    due_at(f0=5_000)
    wanted = fresh(followers[0]).next_attempt_at
    drain()
    post_these(policy(), [followers[0].pk])
    assert fresh(followers[0]).next_attempt_at == wanted


@pytest.mark.parametrize("status", [EntryStatus.POSTED, EntryStatus.DISCARDED])
def test_nobody_is_parked_behind_a_head_that_is_gone(status):
    head, followers = head_and_followers()
    OutboxEntry.objects.filter(pk=head.pk).update(status=status)
    ids = [it.pk for it in followers]
    assert parking.park_behind({head.pk: ids}, cap_s=60).entries == 0
    assert parking.park_all_behind(head.pk, cap_s=60) == 0


def barrier_of(*claimed):
    rows = parking.rows.claim_these([it.pk for it in claimed])
    return parking.barriers(rows).get(B)


def test_barrier_is_the_first_entry_outside_the_batch():
    a, b, c, d = (put(key, into("OAK", "1"), aggregate=B) for key in "abcd")
    assert barrier_of(a) is None
    assert barrier_of(a, b, c, d) is None
    assert barrier_of(b) == a.pk
    assert barrier_of(b, c, d) == a.pk
    assert barrier_of(a, c) == b.pk
    assert barrier_of(a, b, d) == c.pk
    assert barrier_of(a, d) == b.pk


def test_dead_entry_bars_those_behind_it_alone():
    a, b, c = (put(key, into("OAK", "1"), aggregate=B) for key in "abc")
    OutboxEntry.objects.filter(pk=b.pk).update(status=EntryStatus.DEAD)
    assert barrier_of(a, c) == b.pk
    result = drain()
    assert [it.id for it in result.posted] == [a.pk]
    assert state(c) == ("pending", 0, "")


def test_gap_before_a_dead_entry_bars_too():
    a, b, c, d = (put(key, into("OAK", "1"), aggregate=B) for key in "abcd")
    OutboxEntry.objects.filter(pk=d.pk).update(status=EntryStatus.DEAD)
    assert barrier_of(a, c) == b.pk


def test_order_holds_where_the_followers_are_due_first():
    """Each takes what the one before brought: out of order one would be refused."""
    chain = [
        put(f"c{n}", lines((f"stock:S{n}", "1"), (WORLD if n == 0 else f"stock:S{n - 1}", "-1")),
            aggregate=B)
        for n in range(10)
    ]  # fmt: skip
    due_at(**{f"c{n}": -n - 1 for n in range(10)})
    drain(limit=3)
    assert {state(it) for it in chain} == {("posted", 0, "")}
    assert_books_balance()


def test_refused_entry_holds_back_its_batch_mates_of_the_same_aggregate():
    bad = junk("bad", {}, aggregate=B)
    follower = put("f", into("OAK", "1"), aggregate=B)
    post_due(policy(), limit=500)
    assert state(bad)[1] == 1
    assert state(follower) == ("pending", 0, "")
    assert not Transaction.objects.exists()


# Two connections


@pytest.mark.django_db(transaction=True)
@pytest.mark.mariadb
def test_claim_leaves_what_another_drain_has_locked(second_connection):
    store((f"k{n}", f"lot:{n}", into("OAK", "1")) for n in range(5))
    held = OutboxEntry.objects.get(event_key="k1")
    with second_connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM ledger_outboxentry WHERE id = %s FOR UPDATE", [held.pk])
        assert len(drain().posted) == 4
        assert state(held) == ("pending", 0, "")
        cursor.execute("ROLLBACK")
    assert [it.id for it in drain().posted] == [held.pk]


@pytest.mark.django_db(transaction=True)
@pytest.mark.mariadb
def test_followers_of_a_locked_head_step_aside_for_the_others(second_connection, monkeypatch):
    monkeypatch.setattr(parking, "BUSY_HEAD_LEAST_S", 60.0)  # longer than the batches take
    monkeypatch.setattr(parking, "BUSY_HEAD_DELAY_S", 60.0)
    head, followers = head_and_followers(60)
    other = put("other", into("OAK", "1"))
    with second_connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM ledger_outboxentry WHERE id = %s FOR UPDATE", [head.pk])
        assert parking.park_all_behind(head.pk, cap_s=60) == 0
        result = drain(limit=10, rounds=8)
        cursor.execute("ROLLBACK")
    assert [it.id for it in result.posted] == [other.pk]
    assert {state(it) for it in followers} == {("pending", 0, "")}
    soon = db_now() + timedelta(seconds=parking.BUSY_HEAD_DELAY_S)
    assert all(fresh(it).next_attempt_at <= soon for it in followers)


@pytest.mark.django_db(transaction=True)
@pytest.mark.mariadb
def test_batch_that_is_rolled_back_leaves_no_trace():
    entry = put("k", into("OAK", "1"))
    bad = junk("bad", {})

    def lose():
        raise LeaseLostError("lost")

    with pytest.raises(LeaseLostError):
        post_due(policy(seal=lose), limit=10)
    assert {state(it) for it in (entry, bad)} == {("pending", 0, "")}
    assert not Transaction.objects.exists()


def test_seal_is_the_last_statement_of_the_batch():
    put("k", into("OAK", "1"))
    seen = []

    def wrap(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    def seal():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 4711")

    with transaction.atomic(), connection.execute_wrapper(wrap):
        post_due(policy(seal=seal), limit=10)
    last = len(seen) - seen[::-1].index("SELECT 4711")
    assert all(sql.startswith("RELEASE SAVEPOINT") for sql in seen[last:])
    assert any(sql.startswith("UPDATE") for sql in seen)
