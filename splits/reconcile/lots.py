"""Lots against their receipts and the orders that used them."""

from collections.abc import Collection
from typing import Any

from django.db.models import Q

from recovery.sqlite import ExactSum
from splits.models import (
    FinalizeStep,
    Lot,
    LotStatus,
    OrderStatus,
    SplitOrder,
    StepName,
)
from splits.reconcile.findings import (
    Changes,
    Report,
    add_changes,
    changes_text,
    repair_of,
    same_changes,
)
from splits.reconcile.ledger import LOT_PREFIX, RECEIVED_SUFFIX, STOCK, ZERO
from splits.reconcile.reading import traces, windows

RECEIPTS = "external:receipts"
CONSUMED_BY_NOBODY = "lot_consumed_without_order"
CONSUMED_STEPS = tuple(StepName)[1:]


def check_lots(report: Report, under_way: Changes) -> Changes:
    """Check every lot; return the quantities of available lots by stock account and unit.

    Receipts that are missing are added to ``under_way``.
    """
    available: Changes = {}
    columns = ("pk", "code", "sku", "quantity", "unit", "status", "parent_order_id")
    for window in windows(Lot):
        rows = list(Lot.objects.filter(window).order_by("pk").values(*columns))
        _check_receipts(report, under_way, [row for row in rows if row["parent_order_id"] is None])
        _check_consumed(report, [row for row in rows if row["status"] == LotStatus.CONSUMED])
        _add_available(available, window)
        report.count("lots", len(rows))
    return available


def _add_available(available: Changes, window: Q) -> None:
    sums = Lot.objects.filter(window).available().order_by().values_list("sku", "unit")
    for sku, unit, total in sums.annotate(total=ExactSum("quantity")):
        key = (f"{STOCK}{sku}", unit)
        available[key] = available.get(key, ZERO) + total


def _check_receipts(report: Report, under_way: Changes, roots: Collection[dict[str, Any]]) -> None:
    keys = {row["pk"]: f"{LOT_PREFIX}{row['code']}{RECEIVED_SUFFIX}" for row in roots}
    known = traces(keys.values())
    for row in roots:
        trace = known[keys[row["pk"]]]
        quantity, unit = row["quantity"], row["unit"]
        expected = {(f"{STOCK}{row['sku']}", unit): quantity, (RECEIPTS, unit): -quantity}
        if not trace.exists():
            add_changes(under_way, expected)
            report.find(
                "lot_without_receipt",
                f"lot:{row['code']}",
                expected=f"{keys[row['pk']]} in outbox or ledger",
                found=trace.state(),
                repair="publish its receipt, or remove the lot if the board was never there",
            )
        elif trace.changes is not None and not same_changes(expected, trace.changes):
            report.find(
                "receipt_differs_from_lot",
                f"lot:{row['code']}",
                expected=changes_text(expected),
                found=changes_text(trace.changes),
                repair="publish a correcting entry for the difference, or correct the lot",
            )


def _check_consumed(report: Report, consumed: Collection[dict[str, Any]]) -> None:
    """Find consumed lots that no living order has consumed."""
    used = consumed_by_orders([row["pk"] for row in consumed])
    for row in consumed:
        if row["pk"] not in used:
            target = f"{LOT_PREFIX}{row['code']}"
            report.find(
                CONSUMED_BY_NOBODY,
                target,
                expected="available, or a live order whose consume_source step is done",
                found="consumed by no order",
                repair=repair_of(CONSUMED_BY_NOBODY, target),
            )


def consumed_by_orders(ids: Collection[int]) -> set[int]:
    """Return those of the lots that a living order has consumed."""
    users = SplitOrder.objects.filter(live_lot__in=ids)
    stepped = FinalizeStep.objects.filter(order__in=users, name__in=CONSUMED_STEPS)
    final = Q(status=OrderStatus.FINALIZED) | Q(pk__in=stepped.values("order_id"))
    return {pk for pk in users.filter(final).values_list("live_lot_id", flat=True) if pk}
