"""The floor: the bare driver doing the same SQL in batches, without refusals, waiting or leases."""

import json
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import MySQLdb

BATCH = 500
BALANCES_AT_ONCE = 100


def connect(url: str) -> Any:
    """Return a driver connection set up as the project's own."""
    parts = urlsplit(url)
    return MySQLdb.connect(
        host=parts.hostname,
        port=parts.port,
        user=parts.username,
        password=parts.password,
        database=parts.path.lstrip("/"),
        charset="utf8mb4",
        init_command="SET time_zone='+00:00', tx_isolation='READ-COMMITTED'",
    )


def drain(url: str) -> int:
    """Post everything that is due and return how many entries that was."""
    connection = connect(url)
    connection.autocommit(False)
    posted = 0
    while count := _post_batch(connection):
        posted += count
    connection.close()
    return posted


def _post_batch(connection: Any) -> int:
    cursor = connection.cursor()
    cursor.execute(
        "SELECT id, event_key, event_type, aggregate, payload, content_hash, attempts, created_at"
        " FROM ledger_outboxentry"
        " WHERE status = 'pending' AND next_attempt_at <= UTC_TIMESTAMP(6)"
        f" ORDER BY status, next_attempt_at, id LIMIT {BATCH} FOR UPDATE SKIP LOCKED"
    )
    entries = cursor.fetchall()
    if entries:
        _look(cursor, ",".join(str(entry[0]) for entry in entries))
        _post(cursor, entries)
    connection.commit()
    return len(entries)


def _look(cursor: Any, ids: str) -> None:
    """Ask what the product asks: who stands before these entries, which keys were posted."""
    cursor.execute(
        "SELECT e.aggregate,"
        " (SELECT p.id FROM ledger_outboxentry p FORCE INDEX (outbox_aggregate)"
        "   WHERE p.aggregate = e.aggregate AND p.status = 'pending' ORDER BY p.id LIMIT 1),"
        " (SELECT p.id FROM ledger_outboxentry p FORCE INDEX (outbox_aggregate)"
        "   WHERE p.aggregate = e.aggregate AND p.status = 'dead' ORDER BY p.id LIMIT 1)"
        f" FROM ledger_outboxentry e WHERE e.id IN ({ids})"
    )
    cursor.fetchall()
    cursor.execute(
        "SELECT e.id FROM ledger_outboxentry e STRAIGHT_JOIN ledger_transaction t"
        f" ON t.event_key = e.event_key WHERE e.id IN ({ids})"
    )
    cursor.fetchall()


def _post(cursor: Any, entries: Any) -> None:
    lines = [
        (entry[0], number, item["account"], Decimal(item["quantity"]))
        for entry in entries
        for number, item in enumerate(json.loads(entry[4])["postings"], start=1)
    ]
    accounts = _accounts(cursor, sorted({code for _, _, code, _ in lines}))
    for _, _, code, quantity in lines:
        accounts[code][1] += quantity
    ids = ",".join(str(entry[0]) for entry in entries)
    cursor.execute("SELECT UTC_TIMESTAMP(6)")
    (now,) = cursor.fetchone()
    cursor.execute(
        "INSERT INTO ledger_transaction (id, event_key, event_type, content_hash, posted_at)"
        " SELECT id, event_key, event_type, content_hash, %s FROM ledger_outboxentry"
        f" WHERE id IN ({ids})",
        [now],
    )
    values = ",".join(f"({pk},{line},{accounts[code][0]},{qty})" for pk, line, code, qty in lines)
    cursor.execute(
        f"INSERT INTO ledger_posting (transaction_id, line, account_id, quantity) VALUES {values}"
    )
    cursor.execute(
        "UPDATE ledger_outboxentry SET status = 'posted', posted_at = %s WHERE id IN (" + ids + ")",
        [now],
    )
    _store(cursor, list(accounts.values()))


def _accounts(cursor: Any, codes: list[str]) -> dict[str, list[Any]]:
    marks = ", ".join(["%s"] * len(codes))
    cursor.execute(
        f"SELECT code, id, balance, closed_at FROM ledger_account WHERE code IN ({marks})", codes
    )
    return {code: [pk, balance] for code, pk, balance, _ in cursor.fetchall()}


def _store(cursor: Any, accounts: list[list[Any]]) -> None:
    """Lock the accounts and store their balances, some at a time: a long CASE is slow."""
    ids = ",".join(str(pk) for pk, _ in accounts)
    cursor.execute(
        f"SELECT id, balance FROM ledger_account WHERE id IN ({ids}) ORDER BY id FOR UPDATE"
    )
    cursor.fetchall()
    for start in range(0, len(accounts), BALANCES_AT_ONCE):
        some = accounts[start : start + BALANCES_AT_ONCE]
        cases = " ".join(f"WHEN {pk} THEN {balance}" for pk, balance in some)
        ids = ",".join(str(pk) for pk, _ in some)
        cursor.execute(
            f"UPDATE ledger_account SET balance = CASE id {cases} END WHERE id IN ({ids})"
        )
