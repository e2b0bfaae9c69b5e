"""What a database must hold once everything has settled, asked in plain SQL.

Shares no code with the product: neither its models nor its ``reconcile``. What was imported is
compared with what the CSV says, and all the rest with itself.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import MySQLdb

STEPS = ("validate", "consume_source", "create_outputs", "post_ledger", "notify")

# Each query finds rows that must not be there.
NEVER = {
    "order not finalized": """
        SELECT number, status, finalize_in_progress, finalize_attempts, last_finalize_error
          FROM splits_splitorder WHERE status <> 'finalized' OR finalize_in_progress
            OR finalized_at IS NULL OR finalize_owner <> ''""",
    "order whose steps are not each there once": f"""
        SELECT o.number, GROUP_CONCAT(s.name ORDER BY s.id) AS taken
          FROM splits_splitorder o LEFT JOIN splits_finalizestep s ON s.order_id = o.id
         GROUP BY o.id HAVING taken IS NULL OR taken <> '{",".join(STEPS)}'""",
    "step under an epoch its order has not had, or out of turn": """
        SELECT o.number, s.name, s.epoch, o.finalize_epoch
          FROM splits_finalizestep s JOIN splits_splitorder o ON o.id = s.order_id
          LEFT JOIN splits_finalizestep e ON e.order_id = s.order_id AND e.id < s.id
               AND e.epoch > s.epoch
         WHERE s.epoch > o.finalize_epoch OR e.id IS NOT NULL""",
    "entry not posted": """
        SELECT event_key, status, attempts, last_error_code, last_error FROM ledger_outboxentry
         WHERE status <> 'posted' OR posted_at IS NULL""",
    "entry without its transaction": """
        SELECT e.event_key FROM ledger_outboxentry e
          LEFT JOIN ledger_transaction t ON t.event_key = e.event_key
               AND t.content_hash = e.content_hash AND t.event_type = e.event_type
         WHERE t.id IS NULL""",
    "transaction without its entry": """
        SELECT t.event_key FROM ledger_transaction t
          LEFT JOIN ledger_outboxentry e ON e.event_key = t.event_key WHERE e.id IS NULL""",
    "transaction with fewer than two postings": """
        SELECT t.event_key, COUNT(p.id) AS postings FROM ledger_transaction t
          LEFT JOIN ledger_posting p ON p.transaction_id = t.id
         GROUP BY t.id HAVING postings < 2""",
    "transaction that does not add up to zero": """
        SELECT t.event_key, a.unit, SUM(p.quantity) AS total FROM ledger_posting p
          JOIN ledger_transaction t ON t.id = p.transaction_id
          JOIN ledger_account a ON a.id = p.account_id
         GROUP BY t.id, a.unit HAVING total <> 0""",
    "account whose balance is not the sum of its postings": """
        SELECT a.code, a.unit, a.balance, COALESCE(SUM(p.quantity), 0) AS total
          FROM ledger_account a LEFT JOIN ledger_posting p ON p.account_id = a.id
         GROUP BY a.id HAVING a.balance <> total""",
    "account below zero": """
        SELECT code, unit, balance FROM ledger_account WHERE balance < 0 AND NOT allow_negative""",
    "stock in the ledger that is not on the shelves": """
        SELECT a.code, a.unit, a.balance, COALESCE(SUM(l.quantity), 0) AS available
          FROM ledger_account a
          LEFT JOIN splits_lot l ON CONCAT('stock:', l.sku) = a.code AND l.unit = a.unit
               AND l.status = 'available'
         WHERE a.code LIKE 'stock:%' GROUP BY a.id HAVING a.balance <> available""",
    "source lot that is not consumed": """
        SELECT l.code, l.status FROM splits_splitorder o JOIN splits_lot l ON l.id = o.source_lot_id
         WHERE l.status <> 'consumed'""",
    "line without its one lot": """
        SELECT o.number, i.line, COUNT(l.id) AS lots FROM splits_splitline i
          JOIN splits_splitorder o ON o.id = i.order_id
          JOIN splits_lot b ON b.id = o.source_lot_id
          LEFT JOIN splits_lot l ON l.parent_order_id = o.id AND l.sku = i.sku
               AND l.quantity = i.quantity AND l.unit = b.unit AND l.status = 'available'
               AND l.code = CONCAT(b.code, '-', LPAD(i.line, 3, '0'))
         GROUP BY i.id HAVING lots <> 1""",
    "order with other than as many lots as lines": """
        SELECT o.number FROM splits_splitorder o
         WHERE (SELECT COUNT(*) FROM splits_splitline i WHERE i.order_id = o.id)
            <> (SELECT COUNT(*) FROM splits_lot l WHERE l.parent_order_id = o.id)""",
    "entries of one aggregate posted out of order": """
        SELECT e.event_key, f.event_key FROM ledger_outboxentry e
          JOIN ledger_outboxentry f ON f.aggregate = e.aggregate AND f.id > e.id
         WHERE f.posted_at < e.posted_at""",
    "recovery that is not in the audit": """
        SELECT o.number, o.recovery_count, COUNT(a.id) AS audited FROM splits_splitorder o
          LEFT JOIN recovery_auditrecord a ON a.target_id = o.number
               AND a.target_type = 'split-order'
               AND a.action = 'split-order-finalize-stuck-recovered'
         GROUP BY o.id HAVING audited <> o.recovery_count""",
    "epoch recovered twice": """
        SELECT target_id, JSON_VALUE(evidence, '$.epoch') AS epoch, COUNT(*) AS times
          FROM recovery_auditrecord WHERE action = 'split-order-finalize-stuck-recovered'
         GROUP BY target_id, epoch HAVING times > 1""",
    "order blamed, or given up": """
        SELECT target_type, target_id, action, evidence FROM recovery_auditrecord
         WHERE action IN ('split-order-finalize-retry-limit', 'split-order-quarantined',
                          'outbox-entry-dead')""",
    "fence used by two runs": """
        SELECT job_id, fence, COUNT(*) AS runs FROM recovery_jobrun
         GROUP BY job_id, fence HAVING runs > 1""",
}


@dataclass(frozen=True)
class Account:
    """An account by code and unit."""

    code: str
    unit: str


def connect(url: str) -> Any:
    """Return a connection of the driver to the server at ``url``, which commits by itself."""
    parts = urlsplit(url)
    return MySQLdb.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=parts.username,
        password=parts.password or "",
        database=parts.path.strip("/"),
        charset="utf8mb4",
        autocommit=True,
        connect_timeout=10,
    )


def violations(link: Any, rows: Sequence[dict[str, str]]) -> list[str]:
    """Return what is wrong in the database behind ``link`` after the orders of ``rows`` settled."""
    return [*_never(link), *_unlike_the_plan(link, rows)]


def query(link: Any, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of ``sql``."""
    cursor = link.cursor()
    cursor.execute(sql)
    return list(cursor.fetchall())


def _never(link: Any) -> Iterator[str]:
    for what, sql in NEVER.items():
        found = query(link, sql)
        if found:
            yield f"{len(found)} x {what}, as {found[:3]}"


def _unlike_the_plan(link: Any, rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Compare with the CSV: orders, keys, lines, received boards, sums."""
    numbers = {row["order_number"] for row in rows}
    yield from _differ(
        "orders", Counter(numbers), _counted(link, "SELECT number FROM splits_splitorder")
    )
    keys = [f"split-order:{number}:finalized" for number in numbers]
    keys += [f"lot:{code}:received" for code in {row["board_code"] for row in rows}]
    found = _counted(link, "SELECT event_key FROM ledger_transaction")
    yield from _differ("transactions", Counter(keys), found)
    lines = Counter(
        (row["order_number"], int(row["line"]), row["kind"], row["sku"], Decimal(row["quantity"]))
        for row in rows
    )
    sql = """SELECT o.number, i.line, i.kind, i.sku, i.quantity FROM splits_splitline i
               JOIN splits_splitorder o ON o.id = i.order_id"""
    yield from _differ("lines", lines, Counter(query(link, sql)))
    yield from _differ("balances", _expected_balances(rows), _balances(link))


def _counted(link: Any, sql: str) -> Counter[Any]:
    return Counter(value for (value,) in query(link, sql))


def _differ(what: str, expected: Any, found: Any) -> Iterator[str]:
    if expected == found:
        return
    missing = [key for key in expected if expected[key] != found.get(key)]
    surplus = [key for key in found if key not in expected]
    yield f"{what}: {len(missing)} not as planned {missing[:3]}, {len(surplus)} more {surplus[:3]}"


def _expected_balances(rows: Sequence[dict[str, str]]) -> dict[Account, Decimal]:
    """Return what each account holds once every board is received and split."""
    sums: defaultdict[Account, Decimal] = defaultdict(Decimal)
    for row in rows:
        quantity = Decimal(row["quantity"])
        sums[Account(f"stock:{row['sku']}", row["unit"])] += quantity
        sums[Account("external:receipts", row["unit"])] -= quantity
    return dict(sums)


def _balances(link: Any) -> dict[Account, Decimal]:
    found = query(link, "SELECT code, unit, balance FROM ledger_account")
    return {Account(code, unit): balance for code, unit, balance in found if balance}
