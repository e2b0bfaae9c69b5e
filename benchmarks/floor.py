"""The floor of posting: the bare driver doing the same SQL, without refusals, waiting or leases."""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import MySQLdb

from recovery.pacing import next_size

BATCH, LEAST, MOST = 500, 10, 2_000
LONGEST_S = 1.0
"""Batches grow and shrink as the product's do."""
KEYS_AT_ONCE = 1_000
BALANCES_AT_ONCE = 100


class Account(NamedTuple):
    """What is read of an account."""

    id: int
    balance: Decimal
    allow_negative: int


def connect(url: str) -> Any:
    """Return a driver connection set up as the project's own."""
    parts = urlsplit(url)
    connection = MySQLdb.connect(
        host=parts.hostname,
        port=parts.port,
        user=parts.username,
        password=parts.password,
        database=parts.path.lstrip("/"),
        charset="utf8mb4",
        init_command="SET time_zone='+00:00', tx_isolation='READ-COMMITTED'",
    )
    connection.autocommit(False)
    return connection


def drain(url: str) -> int:
    """Post everything that is due and return how many entries that was."""
    return in_batches(url, _post_batch, size=BATCH, most=MOST)


def in_batches(url: str, post: Callable[[Any, int], int], *, size: int, most: int) -> int:
    """Call ``post`` with a connection and a size until it finds nothing; return the sum."""
    connection = connect(url)
    posted, started = 0, time.perf_counter()
    while count := post(connection, size):
        posted += count
        took_s = time.perf_counter() - started
        size = next_size(size, took_s, least=LEAST, most=most, longest_s=LONGEST_S)
        started = time.perf_counter()
    connection.close()
    return posted


def _post_batch(connection: Any, size: int) -> int:
    cursor = connection.cursor()
    cursor.execute("SELECT UTC_TIMESTAMP(6)")
    (now,) = cursor.fetchone()
    cursor.execute(
        "SELECT id, event_key, aggregate, payload, attempts, CAST(created_at AS CHAR),"
        " last_error = 'the worker died while it worked this entry' FROM ledger_outboxentry"
        " WHERE status = 'pending' AND next_attempt_at <= UTC_TIMESTAMP(6)"
        f" ORDER BY status, next_attempt_at, id LIMIT {size} FOR UPDATE SKIP LOCKED"
    )
    entries = cursor.fetchall()
    if entries:
        ids = _numbers(entry[0] for entry in entries)
        _look(cursor, ids)
        _post(cursor, entries, ids, now)
    connection.commit()
    return len(entries)


def _numbers(values: Any) -> str:
    return ",".join(map(str, values))


def _look(cursor: Any, ids: str) -> None:
    """Ask what the product asks: who stands before these entries, which keys were posted."""
    cursor.execute(
        "SELECT e.aggregate,"
        " (SELECT p.id FROM ledger_outboxentry p FORCE INDEX (outbox_aggregate)"
        "   WHERE p.aggregate = e.aggregate AND p.status = 'pending' ORDER BY p.id LIMIT 1), NULL,"
        " (SELECT p.id FROM ledger_outboxentry p FORCE INDEX (outbox_aggregate)"
        "   WHERE p.aggregate = e.aggregate AND p.status = 'dead' ORDER BY p.id LIMIT 1)"
        f" FROM ledger_outboxentry e WHERE e.id IN ({ids})"
    )
    cursor.fetchall()
    cursor.execute(
        "SELECT e.id, t.content_hash = e.content_hash FROM ledger_outboxentry e"
        " STRAIGHT_JOIN ledger_transaction t"
        f" ON t.event_key = e.event_key WHERE e.id IN ({ids})"
    )
    cursor.fetchall()


def _post(cursor: Any, entries: Any, ids: str, now: Any) -> None:
    lines = [
        (entry[0], number, (item["account"], item["unit"]), item["quantity"])
        for entry in entries
        for number, item in enumerate(json.loads(entry[3])["postings"], start=1)
    ]
    accounts = _accounts(cursor, sorted({code for _, _, (code, _), _ in lines}))
    cursor.execute(
        "INSERT INTO ledger_transaction (id, event_key, event_type, content_hash, posted_at)"
        " SELECT id, event_key, event_type, content_hash, %s FROM ledger_outboxentry"
        f" FORCE INDEX (PRIMARY) WHERE id IN ({ids})",
        [now],
    )
    values = ",".join(f"({pk},{line},{accounts[key].id},{qty})" for pk, line, key, qty in lines)
    cursor.execute(
        f"INSERT INTO ledger_posting (transaction_id, line, account_id, quantity) VALUES {values}"
    )
    cursor.execute(
        "UPDATE ledger_outboxentry SET status = 'posted', posted_at = %s, last_error_code = '',"
        f" last_error = '' WHERE id IN ({ids})",
        [now],
    )
    changes: defaultdict[Account, Decimal] = defaultdict(Decimal)
    for _, _, key, quantity in lines:
        changes[accounts[key]] += Decimal(quantity)
    _store(cursor, {it: change for it, change in changes.items() if not it.allow_negative})
    _change(cursor, {it: change for it, change in changes.items() if it.allow_negative})


def _accounts(cursor: Any, codes: list[str]) -> dict[tuple[str, str], Account]:
    found: dict[tuple[str, str], Account] = {}
    for start in range(0, len(codes), KEYS_AT_ONCE):
        some = codes[start : start + KEYS_AT_ONCE]
        marks = ", ".join(["%s"] * len(some))
        cursor.execute(
            "SELECT balance, closed_at IS NOT NULL, allow_negative, id, code, unit"
            f" FROM ledger_account WHERE code IN ({marks})",
            some,
        )
        for balance, _, free, pk, code, unit in cursor.fetchall():
            found[code, unit] = Account(pk, balance, free)
    return found


def _store(cursor: Any, changes: dict[Account, Decimal]) -> None:
    """Lock the accounts that must not go below zero and store their balances."""
    now = _lock(cursor, sorted(account.id for account in changes))
    balances = [(it.id, now[it.id] + change) for it, change in changes.items()]
    for start in range(0, len(balances), BALANCES_AT_ONCE):
        some = balances[start : start + BALANCES_AT_ONCE]
        cases = " ".join(f"WHEN {pk} THEN {balance:f}" for pk, balance in some)
        ids = _numbers(pk for pk, _ in some)
        cursor.execute(
            f"UPDATE ledger_account SET balance = CASE id {cases} END WHERE id IN ({ids})"
        )


def _lock(cursor: Any, accounts: list[int]) -> dict[int, Decimal]:
    found: dict[int, Decimal] = {}
    for start in range(0, len(accounts), KEYS_AT_ONCE):
        ids = _numbers(accounts[start : start + KEYS_AT_ONCE])
        cursor.execute(
            "SELECT balance, closed_at IS NOT NULL, allow_negative, id FROM ledger_account"
            f" FORCE INDEX (PRIMARY) WHERE id IN ({ids}) ORDER BY id FOR UPDATE"
        )
        found.update((pk, balance) for balance, _, _, pk in cursor.fetchall())
    return found


def _change(cursor: Any, changes: dict[Account, Decimal]) -> None:
    """Change the balances of the others by difference, at the very end: they are hot."""
    cases = " ".join(f"WHEN {it.id} THEN {change:f}" for it, change in changes.items())
    ids = _numbers(account.id for account in changes)
    cursor.execute(
        f"UPDATE ledger_account SET balance = balance + CASE id {cases} END"
        f" WHERE id IN ({ids}) AND closed_at IS NULL AND allow_negative"
    )
