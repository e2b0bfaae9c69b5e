"""The floor of split orders: the bare driver writing the same rows, asking and checking nothing."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from benchmarks.floor import connect
from splits.cutplans import PlannedOrder

BATCH = 20
STEPS = ("validate", "consume_source", "create_outputs", "post_ledger", "notify")
ENTRY_COLUMNS = (
    "event_key, event_type, aggregate, payload, content_hash, status, attempts,"
    " last_error_code, last_error, traceparent"
)
LOT_COLUMNS = "code, sku, quantity, unit, status, parent_order_id, root_code"
ORDER_COLUMNS = (
    "number, source_lot_id, live_lot_id, status, finalize_in_progress, finalize_epoch,"
    " finalize_owner, finalize_attempts, last_finalize_error, last_finalize_error_code,"
    " recovery_count, recovered_at"
)


def finalize_all(url: str) -> int:
    """Finalize every order that is due, a few a transaction; return how many."""
    connection = connect(url)
    finalized = 0
    while count := _finalize_batch(connection):
        finalized += count
    connection.close()
    return finalized


def _finalize_batch(connection: Any) -> int:
    cursor = connection.cursor()
    cursor.execute(
        "SELECT o.id, o.number, l.id, l.code, l.sku, l.quantity, l.unit, l.root_code"
        " FROM splits_splitorder o JOIN splits_lot l ON l.id = o.source_lot_id"
        " WHERE o.status = 'ready' AND o.finalize_in_progress IN (0)"
        " AND o.next_finalize_at <= UTC_TIMESTAMP(6)"
        f" ORDER BY o.next_finalize_at, o.id LIMIT {BATCH} FOR UPDATE SKIP LOCKED"
    )
    orders = cursor.fetchall()
    if orders:
        _write(cursor, orders)
    connection.commit()
    return len(orders)


def _write(cursor: Any, orders: Sequence[Any]) -> None:
    ids = _numbers(order[0] for order in orders)
    lines = _lines(cursor, ids)
    sources = _numbers(order[2] for order in orders)
    cursor.execute(f"UPDATE splits_lot SET status = 'consumed' WHERE id IN ({sources})")
    _insert(
        cursor, "splits_lot", LOT_COLUMNS, [row for it in orders for row in _lots(it, lines[it[0]])]
    )
    _insert(
        cursor, "ledger_outboxentry", ENTRY_COLUMNS, [_entry(it, lines[it[0]]) for it in orders]
    )
    _insert(
        cursor,
        "splits_finalizestep",
        "order_id, name, epoch",
        [(order[0], step, 1) for order in orders for step in STEPS],
    )
    cursor.execute(
        "UPDATE splits_splitorder SET status = 'finalized', finalize_epoch = finalize_epoch + 1,"
        " finalize_attempts = finalize_attempts + 1, finalize_started_at = UTC_TIMESTAMP(6),"
        " finalize_progress_at = UTC_TIMESTAMP(6), finalized_at = UTC_TIMESTAMP(6),"
        f" next_finalize_at = NULL WHERE id IN ({ids})"
    )


def _numbers(values: Iterable[Any]) -> str:
    return ",".join(map(str, values))


def _lines(cursor: Any, ids: str) -> dict[int, list[Any]]:
    cursor.execute(
        "SELECT order_id, line, sku, quantity FROM splits_splitline"
        f" WHERE order_id IN ({ids}) ORDER BY order_id, line"
    )
    found: defaultdict[int, list[Any]] = defaultdict(list)
    for order, *line in cursor.fetchall():
        found[order].append(line)
    return found


def _lots(order: Any, lines: Sequence[Any]) -> list[Any]:
    pk, _, _, code, _, _, unit, root = order
    return [
        (f"{code}-{line:03d}", sku, quantity, unit, "available", pk, root)
        for line, sku, quantity in lines
    ]


def _entry(order: Any, lines: Sequence[Any]) -> Any:
    _, number, _, _, sku, quantity, unit, root = order
    moves = [(f"stock:{sku}", -quantity), *((f"stock:{sku}", qty) for _, sku, qty in lines)]
    key = f"split-order:{number}:finalized"
    return _entry_row(key, "split-order-finalized", f"lot:{root}", moves, unit)


def _entry_row(
    key: str, event_type: str, aggregate: str, moves: Sequence[tuple[str, Decimal]], unit: str
) -> Any:
    postings = [
        {"account": account, "quantity": f"{quantity.normalize():f}", "unit": unit}
        for account, quantity in moves
    ]
    payload = {"schema_version": 1, "postings": postings}
    content = {"aggregate": aggregate, "event_type": event_type, "payload": payload}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    stored = json.dumps(payload)
    return (key, event_type, aggregate, stored, digest, "pending", 0, "", "", "")


def _insert(cursor: Any, table: str, columns: str, rows: Sequence[Any]) -> int:
    """Insert rows in one statement; return the id of the first."""
    marks = ", ".join(["%s"] * len(rows[0]))
    cursor.execute(
        f"INSERT INTO {table} ({columns}) VALUES " + ", ".join([f"({marks})"] * len(rows)),
        [value for row in rows for value in row],
    )
    return int(cursor.lastrowid)


def import_all(url: str, orders: Iterable[PlannedOrder]) -> None:
    """Write boards, receipts, drafts and lines of parsed orders, each in one transaction."""
    connection = connect(url)
    cursor = connection.cursor()
    for order in orders:
        board = order.board
        lot = _insert(
            cursor,
            "splits_lot",
            LOT_COLUMNS,
            [(board.code, board.sku, board.quantity, board.unit, "available", None, board.code)],
        )
        moves = [(f"stock:{board.sku}", board.quantity), ("external:receipts", -board.quantity)]
        aggregate = f"lot:{board.code}"
        entry = _entry_row(f"{aggregate}:received", "lot-received", aggregate, moves, board.unit)
        _insert(cursor, "ledger_outboxentry", ENTRY_COLUMNS, [entry])
        values = (order.number, lot, lot, "draft", 0, 0, "", 0, "", "", 0, "[]")
        pk = _insert(cursor, "splits_splitorder", ORDER_COLUMNS, [values])
        _insert(
            cursor,
            "splits_splitline",
            "order_id, line, kind, sku, quantity",
            [(pk, *line) for line in order.lines],
        )
        connection.commit()
    connection.close()
