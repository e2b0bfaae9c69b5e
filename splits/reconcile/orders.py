"""Split orders against their steps, their lots and the ledger."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from ledger.outbox import quantity_text
from splits.models import (
    FinalizeStep,
    Lot,
    LotStatus,
    OrderStatus,
    SplitLine,
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
from splits.reconcile.ledger import ORDER_PREFIX
from splits.reconcile.reading import Trace, traces, windows
from splits.steps import child_code

ORDERS_AT_ONCE = 250
STEPS = tuple(StepName)
SHOWN = 3
NOT_CONSUMED = "source_lot_not_consumed"


class Piece(NamedTuple):
    """A child lot as a line asks for it, or as it is there."""

    code: str
    sku: str
    quantity: Decimal
    unit: str


@dataclass
class Facts:
    """All there is of one order."""

    order: SplitOrder
    steps: set[str] = field(default_factory=set)
    lines: list[tuple[int, str, Decimal]] = field(default_factory=list)
    outputs: list[tuple[Piece, str]] = field(default_factory=list)

    @property
    def target(self) -> str:
        """Return what findings call the order."""
        return f"{ORDER_PREFIX}{self.order.number}"

    @property
    def is_final(self) -> bool:
        """Tell whether the order went through all its steps."""
        return self.order.status in (OrderStatus.FINALIZED, OrderStatus.REVERSED)

    @property
    def is_reversed(self) -> bool:
        """Tell whether what the order did was undone."""
        return self.order.status == OrderStatus.REVERSED

    def reached(self, step: StepName) -> bool:
        """Tell whether ``step`` must have been done: it or a later one is recorded, or all are."""
        return self.is_final or any(name in self.steps for name in STEPS[STEPS.index(step) :])

    @property
    def has_consumed(self) -> bool:
        """Tell whether the order's source lot has to be consumed."""
        return self.reached(StepName.CONSUME_SOURCE) and not self.is_reversed

    def expected_pieces(self) -> list[Piece]:
        """Return the child lots that the lines ask for."""
        source = self.order.source_lot
        return [
            Piece(child_code(source.code, line), sku, quantity, source.unit)
            for line, sku, quantity in self.lines
        ]

    def expected_changes(self, sign: int) -> Changes:
        """Return the stock movement of the order; ``sign`` -1: of its reversal."""
        source = self.order.source_lot
        changes = {(f"stock:{source.sku}", source.unit): -source.quantity * sign}
        for _line, sku, quantity in self.lines:
            key = (f"stock:{sku}", source.unit)
            changes[key] = changes.get(key, Decimal(0)) + quantity * sign
        return changes

    def unpublished_changes(self) -> Changes:
        """Return what the order did to lots before its ledger step."""
        if self.reached(StepName.POST_LEDGER) or not self.reached(StepName.CONSUME_SOURCE):
            return {}
        if self.reached(StepName.CREATE_OUTPUTS):
            return self.expected_changes(1)
        source = self.order.source_lot
        return {(f"stock:{source.sku}", source.unit): -source.quantity}


def check_orders(report: Report, under_way: Changes) -> None:
    """Check every order: its steps, its source lot, its child lots, its ledger entries.

    What an order did to lots and did not publish yet, or should have, is added to ``under_way``.
    """
    for window in windows(SplitOrder, ORDERS_AT_ONCE):
        orders = list(SplitOrder.objects.filter(window).select_related("source_lot").order_by("pk"))
        known = traces(_keys(orders))
        for facts in facts_of(orders).values():
            _check_steps(report, facts)
            _check_source(report, facts)
            _check_outputs(report, facts)
            for missing in _check_ledger(report, facts, known):
                add_changes(under_way, missing)
            add_changes(under_way, facts.unpublished_changes())
        report.count("orders", len(orders))


def _keys(orders: Collection[SplitOrder]) -> list[str]:
    return [key for order in orders for key in (order.event_key, order.reversal_key)]


def facts_of(orders: Collection[SplitOrder]) -> dict[int, Facts]:
    """Return all there is of orders read with their source lots, by id."""
    facts = {order.pk: Facts(order) for order in orders}
    steps = FinalizeStep.objects.filter(order__in=facts).order_by()
    for order_id, name in steps.values_list("order_id", "name"):
        facts[order_id].steps.add(name)
    lines = SplitLine.objects.filter(order__in=facts).order_by("order_id", "line")
    for order_id, line, sku, quantity in lines.values_list("order_id", "line", "sku", "quantity"):
        facts[order_id].lines.append((line, sku, quantity))
    outputs = Lot.objects.filter(parent_order__in=facts).order_by("pk")
    for order_id, status, *piece in outputs.values_list(
        "parent_order_id", "status", "code", "sku", "quantity", "unit"
    ):
        facts[order_id].outputs.append((Piece._make(piece), status))
    return facts


def _check_steps(report: Report, facts: Facts) -> None:
    last = STEPS[-1] if facts.is_final else None
    reached = [name for name in STEPS if facts.reached(name)]
    missing = [name.value for name in reached if name not in facts.steps]
    if missing:
        report.find(
            "finalized_with_open_steps" if last else "steps_missing",
            facts.target,
            expected=", ".join(name.value for name in reached),
            found=f"not recorded: {', '.join(missing)}",
            repair="check that their effects are there, then add the rows in splits_finalizestep",
        )


def _check_source(report: Report, facts: Facts) -> None:
    source = facts.order.source_lot
    if not facts.has_consumed or source.status == LotStatus.CONSUMED:
        return
    cancelled = "find what cancelled the lot by hand; correct it, or reverse the order"
    is_free = source.status == LotStatus.AVAILABLE
    report.find(
        NOT_CONSUMED,
        facts.target,
        expected=f"lot {source.code} consumed",
        found=source.status,
        repair=repair_of(NOT_CONSUMED, facts.target) if is_free else cancelled,
    )


def _check_outputs(report: Report, facts: Facts) -> None:
    expected = facts.expected_pieces() if facts.reached(StepName.CREATE_OUTPUTS) else []
    found = [piece for piece, _status in facts.outputs]
    cancelled = [status == LotStatus.CANCELLED for _piece, status in facts.outputs]
    if facts.is_reversed:  # codes of cancelled lots may have been given up to newer lots
        right = _without_codes(expected) == _without_codes(found) and all(cancelled)
    else:
        right = sorted(expected) == sorted(found) and not any(cancelled)
    if not right:
        report.find(
            "child_lots_differ_from_lines",
            facts.target,
            expected=_pieces_text({*expected} - {*found}, len(expected)),
            found=_pieces_text({*found} - {*expected}, len(found))
            + (f", {sum(cancelled)} cancelled" if any(cancelled) else ""),
            repair="correct the lots to what the order's lines say, or reverse the order",
        )


def _without_codes(pieces: list[Piece]) -> list[tuple[str, Decimal, str]]:
    return sorted((piece.sku, piece.quantity, piece.unit) for piece in pieces)


def _pieces_text(pieces: set[Piece], total: int) -> str:
    shown = [
        f"{piece.code} {piece.sku} {quantity_text(piece.quantity)} {piece.unit}"
        for piece in sorted(pieces)[:SHOWN]
    ]
    return f"{total} lots" + (f", among them {'; '.join(shown)}" if shown else "")


def _check_ledger(report: Report, facts: Facts, known: Mapping[str, Trace]) -> Iterator[Changes]:
    """Check the order's entries; yield the changes that are in no entry."""
    if facts.reached(StepName.POST_LEDGER):
        key = facts.order.event_key
        yield _check_trace(report, facts, key, known[key], facts.expected_changes(1))
    if facts.is_reversed:
        key = facts.order.reversal_key
        yield _check_trace(report, facts, key, known[key], facts.expected_changes(-1))


def _check_trace(
    report: Report, facts: Facts, key: str, trace: Trace, expected: Changes
) -> Changes:
    if not trace.exists():
        report.find(
            "order_without_ledger_entry",
            facts.target,
            expected=f"{key} in outbox or ledger",
            found=trace.state(),
            repair=_republish(trace),
        )
        return expected
    if len(trace.transactions) > 1:
        report.find(
            "order_posted_twice",
            facts.target,
            expected=f"one transaction {key}",
            found=f"transactions {', '.join(map(str, sorted(trace.transactions)))}",
            repair="post the reverse of all but the first",
        )
    if trace.changes is not None and not same_changes(expected, trace.changes):
        report.find(
            "order_postings_differ_from_lines",
            facts.target,
            expected=changes_text(expected),
            found=changes_text(trace.changes),
            repair="publish a correcting entry for the difference, or reverse the order",
        )
    return {}


def _republish(trace: Trace) -> str:
    if trace.entry_id is None:
        return "publish it: splits.steps.post_ledger(order) in a transaction, from manage.py shell"
    return f"publish the movement of discarded entry {trace.entry_id} under a new key"
