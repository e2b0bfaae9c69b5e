"""Several drains at once: hot accounts neither serialize nor deadlock them, nobody is overtaken."""

import random
import threading
from contextlib import closing
from decimal import Decimal

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from ledger import rows
from ledger.judging import Verdict, _move, keep_pace
from ledger.models import Account, ErrorCode, OutboxEntry
from ledger.outbox import Line
from ledger.payloads import Movement, RefusedError
from ledger.posting import post_due
from recovery.errors import DEADLOCK
from tests.ledger.entries import (
    DEADLINE_S,
    WORLD,
    Background,
    assert_books_balance,
    balance,
    drain,
    into,
    make_due,
    policy,
    put,
    state,
    store,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

SKUS = 5


def moves(seed):
    """Return lines that touch the hot account and three of five others, in any order."""
    dice = random.Random(seed)
    found = [Line(f"stock:{n}", 1, "m2") for n in dice.sample(range(SKUS), 3)]
    found.append(Line(WORLD, -3, "m2"))
    dice.shuffle(found)
    return found


def meanwhile(monkeypatch, name, action):
    """Let ``action`` happen just before the statement ``rows.<name>``, once."""
    statement, left = getattr(rows, name), [action]

    def after_action(*arguments):
        if left:
            left.pop()()
        return statement(*arguments)

    monkeypatch.setattr(rows, name, after_action)


def apart(action):
    """Do ``action`` on a connection of its own, to its end."""
    return lambda: Background(action).result()


def test_drains_with_accounts_in_common_post_everything_once_without_a_deadlock(caplog):
    caplog.set_level("INFO", "recovery.errors")
    store((f"k{n}", f"lot:{n}", moves(n)) for n in range(1_200))
    drains = [Background(lambda: drain(limit=40)) for _ in range(3)]
    results = [it.result() for it in drains]
    assert sum(len(it.posted) for it in results) == 1_200
    assert not OutboxEntry.objects.pending().exists()
    assert balance(WORLD) == -3_600
    assert_books_balance()
    assert DEADLOCK not in [it.code for it in caplog.records if it.msg == "database_retry"]


def test_drain_that_hangs_before_its_accounts_are_locked_holds_nobody_back(monkeypatch):
    put("in", into("OAK", "3"))
    drain()
    first, second = put("k3", into("OAK", "3")), put("k4", into("OAK", "4"))
    hangs, goes_on = threading.Event(), threading.Event()

    def hang():
        hangs.set()
        assert goes_on.wait(DEADLINE_S)

    meanwhile(monkeypatch, "lock_accounts", hang)
    slow = Background(lambda: post_due(policy(), limit=1))
    assert hangs.wait(DEADLINE_S)
    assert [it.id for it in post_due(policy(), limit=1).posted] == [second.pk]
    goes_on.set()
    assert [it.id for it in slow.result().posted] == [first.pk]
    assert balance("stock:OAK") == 10
    assert_books_balance()


def test_stock_that_another_drain_takes_first_is_not_taken_twice(monkeypatch):
    put("in", into("OAK", "5"))
    drain()
    late = put("late", into("OAK", "-4"))

    def take():
        put("early", into("OAK", "-3"))
        assert post_due(policy(), limit=10).posted

    meanwhile(monkeypatch, "lock_accounts", apart(take))
    assert post_due(policy(), limit=10).failures.keys() == {late.pk}
    assert state(late) == ("pending", 1, "insufficient_balance")
    assert balance("stock:OAK") == 2
    assert_books_balance()


def test_stock_that_comes_in_meanwhile_is_not_refused(monkeypatch):
    out = put("out", into("OAK", "-4"))
    drain()
    make_due()
    assert state(out)[1] == 1

    def bring():
        put("in", into("OAK", "5"))
        post_due(policy(), limit=10)

    meanwhile(monkeypatch, "lock_accounts", apart(bring))
    assert [it.id for it in post_due(policy(), limit=10).posted] == [out.pk]
    assert balance("stock:OAK") == 1
    assert_books_balance()


@pytest.mark.parametrize(
    ("code", "statement"), [("stock:OAK", "lock_accounts"), (WORLD, "change_balances")]
)
def test_account_that_is_closed_meanwhile_takes_no_posting(monkeypatch, code, statement):
    put("k", into("OAK", "1"))
    drain()
    entry = put("late", into("OAK", "1"))
    account = Account.objects.get(code=code)

    def close():  # by its key alone: looking for it would wait for the accounts that are locked
        Account.objects.filter(pk=account.pk).update(closed_at=Now())

    meanwhile(monkeypatch, statement, apart(close))
    assert not post_due(policy(), limit=10).posted
    assert state(entry) == ("pending", 1, "account_closed")
    assert balance("stock:OAK") == 1
    assert_books_balance()


def test_balances_that_move_meanwhile_without_changing_the_verdict_cost_no_second_try(monkeypatch):
    put("k", into("OAK", "9"))
    drain()
    mine, other = put("mine", into("OAK", "-1")), put("other", into("OAK", "2"))
    claimed = []
    claim = rows.claim

    def noted(limit):
        found = claim(limit)
        claimed.extend(it.id for it in found)
        return found

    monkeypatch.setattr(rows, "claim", noted)
    meanwhile(monkeypatch, "lock_accounts", apart(lambda: post_due(policy(), limit=1)))
    assert [it.id for it in post_due(policy(), limit=1).posted] == [mine.pk]
    assert claimed == [mine.pk, other.pk]
    assert balance("stock:OAK") == 10
    assert_books_balance()


def free_of(count, lock, ids):
    """Return whether another connection can lock the row behind those that are locked."""
    table = rows.ACCOUNT if count == "accounts" else rows.ENTRY
    with transaction.atomic():
        assert len(lock()) == 1_000
        with closing(connection.copy()) as other, other.cursor() as cursor:
            cursor.execute("SET innodb_lock_wait_timeout = 0")
            cursor.execute(f"SELECT id FROM {table} WHERE id = %s FOR UPDATE", [ids[-1]])
            return cursor.fetchall() == ((ids[-1],),)


def test_a_thousand_entries_are_locked_and_no_others():
    store((f"k{n}", f"lot:{n}", moves(n)) for n in range(1_200))
    ids = list(OutboxEntry.objects.order_by("id").values_list("pk", flat=True))
    assert free_of("entries", lambda: rows.claim_these(ids[:1_000]), ids)
    assert free_of("entries", lambda: rows.lock_pending(ids[:1_000]), ids)


def test_a_thousand_accounts_are_locked_and_no_others():
    Account.objects.bulk_create(Account(code=f"stock:{n:04d}", unit="m2") for n in range(1_200))
    ids = list(Account.objects.order_by("id").values_list("pk", flat=True))
    some = [rows.AccountRow(pk, (Decimal(0), 0, 0), Decimal(0), Decimal(0)) for pk in ids[:1_000]]
    assert free_of("accounts", lambda: rows.lock_accounts(some), ids)


# Balances that move meanwhile


def account(stored, balance, lowest, *, closed=0):
    """Return an account of the id 7 that a batch has moved."""
    held = (Decimal(stored), closed, 0)
    return rows.AccountRow(7, held, Decimal(balance), Decimal(lowest))


@pytest.mark.parametrize(
    ("now", "stands"),
    [("10", True), ("12", True), ("4", True), ("3.999999", False), ("0", False)],
)
def test_verdict_stands_while_no_entry_would_have_taken_too_much(now, stands):
    row = account("10", "8", "6")
    locked = {7: (Decimal(now), 0, 0)}
    assert keep_pace([row], locked, Verdict()) is stands
    held, change = (now, "-2") if stands else ("10", "-2")
    assert (row.stored[0], row.change()) == (Decimal(held), Decimal(change))


def test_verdict_falls_with_an_account_that_is_closed_or_opened():
    assert not keep_pace([account("1", "2", "1")], {7: (Decimal(1), 1, 0)}, Verdict())
    assert not keep_pace([account("1", "2", "1", closed=1)], {7: (Decimal(1), 0, 0)}, Verdict())


@pytest.mark.parametrize(
    ("code", "stands"),
    [("insufficient_balance", False), ("account_closed", False), ("unbalanced", True)],
)
def test_verdict_falls_where_an_account_refused_an_entry_and_has_moved(code, stands):
    verdict = Verdict(refused=[(None, RefusedError(ErrorCode(code), "no"))])
    assert keep_pace([account("1", "2", "1")], {7: (Decimal(5), 0, 0)}, verdict) is stands
    assert keep_pace([account("1", "2", "1")], {7: (Decimal(1), 0, 0)}, verdict)


def test_account_that_others_may_move_is_taken_as_it_was():
    row = account("1", "2", "1")
    assert keep_pace([row], {}, Verdict())
    assert row.change() == 1


def test_balance_near_the_limit_of_a_database_is_judged_again():
    row = account("999999999", "999999999", "999999999")
    assert not keep_pace([row], {7: (Decimal("999999998"), 0, 0)}, Verdict())


def test_lowest_balance_is_that_of_an_entry_that_took_some():
    row = account("10", "10", "10")
    for change in ("-4", "9", "-1"):
        _move(Movement([], {("a", "u"): Decimal(change)}), {("a", "u"): row})
    assert (row.balance, row.lowest) == (14, 6)
