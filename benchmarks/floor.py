"""The floor: the bare driver doing the same SQL in batches, without order, refusals or lease."""

import json
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import MySQLdb

BATCH = 500


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
        "SELECT id, event_key, event_type, payload, content_hash FROM ledger_outboxentry"
        " WHERE status = 'pending' AND next_attempt_at <= UTC_TIMESTAMP(6)"
        " ORDER BY status, next_attempt_at, id LIMIT %s FOR UPDATE SKIP LOCKED",
        [BATCH],
    )
    entries = cursor.fetchall()
    if entries:
        _post(cursor, entries)
    connection.commit()
    return len(entries)


def _post(cursor: Any, entries: Any) -> None:
    lines = [
        (pk, number, item["account"], Decimal(item["quantity"]))
        for pk, _, _, payload, _ in entries
        for number, item in enumerate(json.loads(payload)["postings"], start=1)
    ]
    accounts = _lock_accounts(cursor, sorted({code for _, _, code, _ in lines}))
    for _, _, code, quantity in lines:
        accounts[code][1] += quantity
    cursor.execute("SELECT UTC_TIMESTAMP(6)")
    (now,) = cursor.fetchone()
    cursor.executemany(  # a row of marks alone: the driver sends many rows at once only then
        "INSERT INTO ledger_transaction (id, event_key, event_type, content_hash, posted_at)"
        " VALUES (%s, %s, %s, %s, %s)",
        [(pk, key, kind, digest, now) for pk, key, kind, _, digest in entries],
    )
    cursor.executemany(
        "INSERT INTO ledger_posting (transaction_id, line, account_id, quantity)"
        " VALUES (%s, %s, %s, %s)",
        [(pk, number, accounts[code][0], str(quantity)) for pk, number, code, quantity in lines],
    )
    _store(cursor, list(accounts.values()), [pk for pk, *_ in entries])


def _lock_accounts(cursor: Any, codes: list[str]) -> dict[str, list[Any]]:
    marks = ", ".join(["%s"] * len(codes))
    cursor.execute(
        f"SELECT code, id, balance FROM ledger_account WHERE code IN ({marks}) FOR UPDATE",
        codes,
    )
    return {code: [pk, balance] for code, pk, balance in cursor.fetchall()}


def _store(cursor: Any, accounts: list[list[Any]], ids: list[int]) -> None:
    cases = " ".join(["WHEN %s THEN %s"] * len(accounts))
    marks = ", ".join(["%s"] * len(accounts))
    cursor.execute(
        f"UPDATE ledger_account SET balance = CASE id {cases} END WHERE id IN ({marks})",
        [str(value) for account in accounts for value in account] + [pk for pk, _ in accounts],
    )
    marks = ", ".join(["%s"] * len(ids))
    cursor.execute(
        "UPDATE ledger_outboxentry SET status = 'posted', posted_at = UTC_TIMESTAMP(6)"
        f" WHERE id IN ({marks})",
        ids,
    )
