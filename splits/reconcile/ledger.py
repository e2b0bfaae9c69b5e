"""The ledger against itself, the outbox, and the lots in stock."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from ledger.models import Account, EntryStatus, OutboxEntry, Transaction
from ledger.outbox import content_hash, quantity_text
from ledger.payloads import AccountKey
from splits.models import FinalizeStep, Lot, OrderStatus, SplitOrder, StepName
from splits.reconcile.findings import (
    Changes,
    Report,
    add_changes,
    changes_text,
    repair_of,
    same_changes,
)
from splits.reconcile.reading import Moved, changes_of, moved_by, windows

STOCK = "stock:"
ORDER_PREFIX, LOT_PREFIX, ACCOUNT_PREFIX = "split-order:", "lot:", "account:"
BALANCE_DIFFERS = "balance_differs_from_postings"
FINALIZED_SUFFIX, REVERSED_SUFFIX, RECEIVED_SUFFIX = ":finalized", ":reversed", ":received"
PUBLISHED_STEPS = (StepName.POST_LEDGER, StepName.NOTIFY)
ZERO = Decimal(0)


def check_transactions(report: Report) -> dict[int, Decimal]:
    """Check that transactions balance and are what entries said; return sums by account id."""
    totals: dict[int, Decimal] = {}
    for window in windows(Transaction):
        moved = moved_by(window)
        rows = list(
            Transaction.objects.filter(window)
            .order_by("pk")
            .values_list("pk", "event_key", "content_hash")
        )
        for transaction_id, key, _hash in rows:
            _check_balanced(report, transaction_id, key, moved.get(transaction_id, Moved()))
        for one in moved.values():
            for account_id, quantity in one.accounts.items():
                totals[account_id] = totals.get(account_id, ZERO) + quantity
        _check_against_entries(report, rows, moved)
        report.count("transactions", len(rows))
        report.count("postings", sum(one.postings for one in moved.values()))
    return totals


def _check_balanced(report: Report, transaction_id: int, key: str, moved: Moved) -> None:
    target = f"transaction:{transaction_id} {key}"
    if moved.postings < 2:
        report.find(
            "transaction_too_few_postings",
            target,
            expected="two or more postings",
            found=str(moved.postings),
            repair="restore the postings from a backup or from the entry's payload",
        )
    elif sums := moved.unbalanced():
        off = ", ".join(f"{quantity_text(total)} {unit}" for unit, total in sums.items())
        report.find(
            "transaction_unbalanced",
            target,
            expected="0 in every unit",
            found=off,
            repair="find what wrote to ledger_posting by hand; post a correcting transaction",
        )


def _check_against_entries(
    report: Report, rows: Iterable[tuple[int, str, str]], moved: Mapping[int, Moved]
) -> None:
    by_key = {key: (transaction_id, found) for transaction_id, key, found in rows}
    entries = OutboxEntry.objects.filter(event_key__in=by_key).order_by()
    with_entry = set()
    for key, status, stored, payload in entries.values_list(
        "event_key", "status", "content_hash", "payload"
    ):
        with_entry.add(key)
        transaction_id, posted_hash = by_key[key]
        posted = moved.get(transaction_id, Moved()).changes
        planned = changes_of(payload)
        differs = posted_hash != stored or (
            planned is not None and not same_changes(planned, posted)
        )
        if status == EntryStatus.POSTED and posted and differs:
            report.find(
                "transaction_content_differs_from_entry",
                f"transaction:{transaction_id} {key}",
                expected=f"{changes_text(planned or {})} (hash {stored[:12]})",
                found=f"{changes_text(posted)} (hash {posted_hash[:12]})",
                repair="find what wrote to the ledger by hand; post a correcting transaction",
            )
    # Where retention has removed the entry, the transaction's key alone names its origin.
    _check_origins(report, [key for key in by_key if key not in with_entry])


def check_entries(report: Report) -> Changes:
    """Check each entry against ledger and origin; return what is to be posted yet."""
    under_way: Changes = {}
    columns = ("pk", "event_key", "event_type", "aggregate", "payload", "content_hash", "status")
    for window in windows(OutboxEntry):
        rows = list(
            OutboxEntry.objects.filter(window)
            .order_by("pk")
            .values(*columns, "last_error_code", "attempts")
        )
        keys = [row["event_key"] for row in rows]
        posted = set(
            Transaction.objects.filter(event_key__in=keys).values_list("event_key", flat=True)
        )
        for row in rows:
            _check_entry(report, row, is_posted=row["event_key"] in posted)
            if row["event_key"] not in posted and row["status"] != EntryStatus.DISCARDED:
                add_changes(under_way, changes_of(row["payload"]) or {})
        live = [row["event_key"] for row in rows if row["status"] != EntryStatus.DISCARDED]
        _check_origins(report, live)
        report.count("entries", len(rows))
    return under_way


def _check_entry(report: Report, row: Mapping[str, Any], *, is_posted: bool) -> None:
    entry_id, key, status = row["pk"], row["event_key"], row["status"]
    target = f"entry:{entry_id} {key}"
    if content_hash(row["event_type"], row["aggregate"], row["payload"]) != row["content_hash"]:
        report.find(
            "entry_content_differs_from_hash",
            target,
            expected=f"content of hash {row['content_hash'][:12]}",
            found=changes_text(changes_of(row["payload"]) or {}),
            repair="find what wrote to ledger_outboxentry by hand; restore the payload",
        )
    if status == EntryStatus.POSTED and not is_posted:
        report.find(
            "posted_entry_without_transaction",
            target,
            expected="a transaction with this key",
            found="none",
            repair="restore the transaction from a backup, or publish the movement under a new key",
        )
    elif status == EntryStatus.DEAD:
        report.checked["dead"] += 1
        report.find(
            "entry_dead",
            target,
            expected="posted",
            found=f"dead after {row['attempts']} attempts: {row['last_error_code'] or 'no code'}",
            repair=f"mend the cause (manage.py dlq show {entry_id}),"
            f" then manage.py dlq redrive --id {entry_id}",
        )
    elif status == EntryStatus.PENDING:
        report.in_flight += not is_posted


def _check_origins(report: Report, keys: Iterable[str]) -> None:
    """Find entries and transactions that no order or lot accounts for."""
    finalized = _named(keys, ORDER_PREFIX, FINALIZED_SUFFIX)
    reversed_ = _named(keys, ORDER_PREFIX, REVERSED_SUFFIX)
    received = _named(keys, LOT_PREFIX, RECEIVED_SUFFIX)
    published = _published({*finalized, *reversed_})
    for number, key in finalized.items():
        if published.get(number) is None:
            _find_orphan(report, key, f"order {number} at its ledger step", published, number)
    for number, key in reversed_.items():
        if published.get(number) != OrderStatus.REVERSED:
            _find_orphan(report, key, f"order {number} reversed", published, number)
    roots = set(Lot.objects.filter(code__in=received).values_list("code", flat=True))
    for code, key in received.items():
        if code not in roots:
            report.find(
                "receipt_without_lot",
                key,
                expected=f"lot {code}",
                found="no such lot",
                repair="restore the lot, or take the receipt back with a reversing transaction",
            )


def _named(keys: Iterable[str], prefix: str, suffix: str) -> dict[str, str]:
    return {
        key[len(prefix) : -len(suffix)]: key
        for key in keys
        if key.startswith(prefix) and key.endswith(suffix)
    }


def _published(numbers: set[str]) -> dict[str, str | None]:
    """Return the status of orders that reached their ledger step; None: they did not."""
    orders = SplitOrder.objects.filter(number__in=numbers)
    done = set(
        FinalizeStep.objects.filter(order__in=orders, name__in=PUBLISHED_STEPS).values_list(
            "order_id", flat=True
        )
    )
    final = (OrderStatus.FINALIZED, OrderStatus.REVERSED)
    return {
        number: status if pk in done or status in final else None
        for pk, number, status in orders.order_by().values_list("pk", "number", "status")
    }


def _find_orphan(
    report: Report, key: str, expected: str, orders: Mapping[str, str | None], number: str
) -> None:
    found = "the order is not there yet" if number in orders else "no such order"
    report.find(
        "ledger_entry_without_order",
        key,
        expected=expected,
        found=found,
        repair="discard it while it is not posted (manage.py dlq discard); else post its reverse",
    )


def check_accounts(
    report: Report, *, posted: dict[int, Decimal], under_way: Changes, available: Changes
) -> None:
    """Check balances against postings, and stock against the available lots of its SKU."""
    for window in windows(Account):
        rows = list(
            Account.objects.filter(window)
            .order_by("pk")
            .values_list("pk", "code", "unit", "balance")
        )
        for pk, code, unit, balance in rows:
            total = posted.pop(pk, ZERO)
            if balance != total:
                _find_balance(report, (code, unit), balance=balance, total=total)
            _check_stock(report, (code, unit), total, under_way, available)
        report.count("accounts", len(rows))
    for key in {*under_way, *available}:
        _check_stock(report, key, ZERO, under_way, available)


def _find_balance(report: Report, key: AccountKey, *, balance: Decimal, total: Decimal) -> None:
    target = f"{ACCOUNT_PREFIX}{key[0]} [{key[1]}]"
    report.find(
        BALANCE_DIFFERS,
        target,
        expected=quantity_text(total),
        found=quantity_text(balance),
        repair=repair_of(BALANCE_DIFFERS, target),
    )


def _check_stock(
    report: Report, key: AccountKey, total: Decimal, under_way: Changes, available: Changes
) -> None:
    """Compare one account's postings, with what is under way, to the lots there are."""
    coming = under_way.pop(key, ZERO)
    lots = available.pop(key, ZERO)
    if not key[0].startswith(STOCK) or lots == total + coming:
        return
    report.find(
        "stock_differs_from_lots",
        f"account:{key[0]} [{key[1]}]",
        expected=f"{quantity_text(lots)} in available lots",
        found=f"{quantity_text(total)} posted, {quantity_text(coming)} under way",
        repair="count the lots of this SKU; publish an adjustment, or correct the lots",
    )
