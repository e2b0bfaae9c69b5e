"""The limit of posting: the server does it all by itself, in batches."""

from typing import Any

from benchmarks.floor import in_batches

BATCH = 999
"""Its best: MariaDB makes a join of an ``IN`` with 1,000 values, and is slow then."""


def drain(url: str) -> int:
    """Post everything that is due and return how many entries that was."""
    return in_batches(url, _post_batch, size=BATCH, most=BATCH)


def _post_batch(connection: Any, size: int) -> int:
    cursor = connection.cursor()
    cursor.execute(
        "SELECT id FROM ledger_outboxentry"
        " WHERE status = 'pending' AND next_attempt_at <= UTC_TIMESTAMP(6)"
        f" ORDER BY status, next_attempt_at, id LIMIT {size} FOR UPDATE SKIP LOCKED"
    )
    ids = ",".join(str(pk) for (pk,) in cursor.fetchall())
    if ids:
        _post(cursor, ids)
    connection.commit()
    return ids.count(",") + 1 if ids else 0


def _post(cursor: Any, ids: str) -> None:
    cursor.execute("SET @now = UTC_TIMESTAMP(6)")
    cursor.execute(
        "INSERT INTO ledger_transaction (id, event_key, event_type, content_hash, posted_at)"
        " SELECT id, event_key, event_type, content_hash, @now FROM ledger_outboxentry"
        f" FORCE INDEX (PRIMARY) WHERE id IN ({ids})"
    )
    cursor.execute(
        "INSERT INTO ledger_posting (transaction_id, line, account_id, quantity)"
        " SELECT STRAIGHT_JOIN e.id, p.line, a.id, p.quantity"
        " FROM ledger_outboxentry e FORCE INDEX (PRIMARY)"
        " JOIN JSON_TABLE(e.payload, '$.postings[*]' COLUMNS (line FOR ORDINALITY,"
        "  account VARCHAR(200) PATH '$.account', unit VARCHAR(20) PATH '$.unit',"
        "  quantity DECIMAL(24, 6) PATH '$.quantity')) p"
        " JOIN ledger_account a FORCE INDEX (account_code_unit)"
        "  ON a.code = p.account COLLATE utf8mb4_bin AND a.unit = p.unit COLLATE utf8mb4_bin"
        f" WHERE e.id IN ({ids})"
    )
    cursor.execute(
        "UPDATE ledger_account a JOIN (SELECT account_id, SUM(quantity) AS moved"
        f"  FROM ledger_posting WHERE transaction_id IN ({ids}) GROUP BY account_id) m"
        " ON m.account_id = a.id SET a.balance = a.balance + m.moved"
    )
    cursor.execute(
        "UPDATE ledger_outboxentry SET status = 'posted', posted_at = @now, last_error_code = '',"
        f" last_error = '' WHERE id IN ({ids})"
    )
