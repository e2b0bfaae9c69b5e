"""What people do to split orders: create, submit, retry, release, cancel, reverse."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, Q

from ledger import outbox
from ledger.models import EntryStatus, OutboxEntry, Transaction
from recovery import tracing
from recovery.fields import checked_key
from recovery.wakeups import wake_on_commit
from splits import audit
from splits.audit import Author
from splits.errors import (
    InProgressError,
    LotBusyError,
    LotNotAvailableError,
    NotInLedgerError,
    NumberTakenError,
    OutputsTouchedError,
    StockMovedError,
    UnknownOrderError,
    WrongStatusError,
)
from splits.models import FinalizeStep, Lot, LotStatus, OrderStatus, SplitLine, SplitOrder, StepName
from splits.steps import postings

FINALIZE_JOB = "finalizeRetryWorker"
REVERSED_EVENT = "split-order-reversed"


@dataclass(frozen=True)
class NewLine:
    """One line of an order to be."""

    line: int
    kind: str
    sku: str
    quantity: Decimal


def create_order(*, number: str, source_lot: Lot, lines: Sequence[NewLine]) -> SplitOrder:
    """Create a draft that holds ``source_lot``, under the lot's row lock.

    Raises NumberTakenError, LotNotAvailableError, LotBusyError; ValidationError: a number or
    SKU that cannot be a key. Whether the lines add up is judged by the validate step.
    """
    for key in (number, *(line.sku for line in lines)):
        checked_key(key)
    with transaction.atomic():
        lot = Lot.objects.select_for_update().get(pk=source_lot.pk)
        if SplitOrder.objects.filter(number=number).exists():
            raise NumberTakenError(number)
        _require_stocked(lot)
        live = SplitOrder.objects.filter(live_lot=lot).first()
        if live:
            raise LotBusyError(f"{lot.code} is held by {live.number}")
        order = _insert(number, lot)
        SplitLine.objects.bulk_create(
            SplitLine(
                order=order, line=line.line, kind=line.kind, sku=line.sku, quantity=line.quantity
            )
            for line in lines
        )
    return order


def _require_stocked(lot: Lot) -> None:
    """Refuse a lot that is used, or not yet published: its stock would be taken before it came."""
    if lot.status != LotStatus.AVAILABLE:
        raise LotNotAvailableError(f"{lot.code} is {lot.status}")
    parent = lot.parent_order
    if parent and not parent.steps.filter(name=StepName.POST_LEDGER).exists():
        raise LotNotAvailableError(f"{lot.code} is made by {parent.number}, not in the ledger yet")


def _insert(number: str, lot: Lot) -> SplitOrder:
    try:
        with transaction.atomic():
            return SplitOrder.objects.create(number=number, source_lot=lot, live_lot=lot)
    except IntegrityError:
        # Another lot's order may have taken the number since it was looked up.
        if SplitOrder.objects.filter(number=number).exists():
            raise NumberTakenError(number) from None
        raise


def locked_order(order_id: int) -> SplitOrder:
    """Return the order with its row locked; raise UnknownOrderError."""
    order = SplitOrder.objects.select_for_update().filter(pk=order_id).first()
    if order is None:
        raise UnknownOrderError(str(order_id))
    return order


def submit(order_id: int, *, due: bool = True) -> bool:
    """Make a draft ready and due, and wake the finalizer; False: it is ready already.

    Without ``due`` no worker takes it: it waits for somebody to start it. Raises
    UnknownOrderError, WrongStatusError.
    """
    with tracing.fresh("split_order.submit") as span, transaction.atomic():
        order = locked_order(order_id)
        if order.status == OrderStatus.READY:
            return False
        _require(order, OrderStatus.DRAFT, "only a draft can be submitted")
        span.note(order=order.number)
        SplitOrder.objects.filter(pk=order_id).submit(due=due, traceparent=tracing.current())
        if due:
            wake_on_commit(FINALIZE_JOB)
    return True


@dataclass(frozen=True)
class _Move:
    """An operator's change: where it leads, how it is audited, what it does."""

    goal: OrderStatus
    action: str
    apply: Callable[[SplitOrder], dict[str, Any]]
    """Changes the order; returns what the record says besides."""


def _move(order_id: int, move: _Move, author: Author) -> bool:
    with transaction.atomic():
        order = locked_order(order_id)
        if order.status == move.goal:
            return False
        evidence = move.apply(order)
        audit.record(order, move.action, author=author, evidence=evidence)
    return True


def retry(order_id: int, *, author: Author, due: bool = True) -> bool:
    """Give a failed order fresh attempts, due at once; False: it is ready already.

    Without ``due`` it waits for somebody to start it. Raises UnknownOrderError, WrongStatusError.
    """

    def apply(order: SplitOrder) -> dict[str, Any]:
        _require(order, OrderStatus.FAILED, "only a failed order can be retried")
        SplitOrder.objects.filter(pk=order.pk).retry(due=due)
        if due:
            wake_on_commit(FINALIZE_JOB)
        return _failure(order)

    return _move(order_id, _Move(OrderStatus.READY, audit.RETRIED, apply), author)


def release(order_id: int, *, author: Author, due: bool = True) -> bool:
    """Let a quarantined order go, ready with fresh counters; False: it is ready already.

    Without ``due`` it waits for an operator to start it. Raises UnknownOrderError,
    WrongStatusError.
    """

    def apply(order: SplitOrder) -> dict[str, Any]:
        _require(order, OrderStatus.QUARANTINED, "only a quarantined order can be released")
        SplitOrder.objects.filter(pk=order.pk).release(due=due)
        wake_on_commit(FINALIZE_JOB)
        return {**_failure(order), "recovered_at": order.recovered_at}

    return _move(order_id, _Move(OrderStatus.READY, audit.RELEASED, apply), author)


def _failure(order: SplitOrder) -> dict[str, Any]:
    return {"code": order.last_finalize_error_code, "error": order.last_finalize_error}


def cancel(order_id: int, *, author: Author) -> bool:
    """Cancel an order that has not moved stock yet; False: it is cancelled already.

    Raises UnknownOrderError, WrongStatusError, InProgressError, StockMovedError.
    """
    return _move(order_id, _Move(OrderStatus.CANCELLED, audit.CANCELLED, _cancel), author)


def _cancel(order: SplitOrder) -> dict[str, Any]:
    if order.finalize_in_progress:
        raise InProgressError(order.number)
    if order.status in (OrderStatus.FINALIZED, OrderStatus.REVERSED):
        raise WrongStatusError(f"{order.number} is {order.status}")
    if FinalizeStep.objects.filter(order=order, name=StepName.CONSUME_SOURCE).exists():
        raise StockMovedError(order.number)
    SplitOrder.objects.filter(pk=order.pk).cancel()
    return {"source_lot": order.source_lot.code}


def reverse(order_id: int, *, author: Author) -> bool:
    """Undo a finalized order whose child lots are untouched; False: it is reversed already.

    Child lots are cancelled, the source lot is available again, the ledger gets the reversing
    entry. Raises UnknownOrderError, WrongStatusError, OutputsTouchedError, NotInLedgerError.
    """
    return _move(order_id, _Move(OrderStatus.REVERSED, audit.REVERSED, _reverse), author)


def why_not_reversible(orders: Sequence[SplitOrder]) -> dict[int, str]:
    """Return why finalized orders cannot be reversed as things stand, by id; left out: they can.

    Three statements, however many orders there are.
    """
    later = SplitOrder.objects.filter(live_lot=OuterRef("pk"))
    outputs = Lot.objects.filter(parent_order__in=orders)
    used = outputs.filter(~Q(status=LotStatus.AVAILABLE) | Exists(later))
    touched = defaultdict(list)
    for order_id, code in used.order_by("code").values_list("parent_order_id", "code"):
        touched[order_id].append(code)
    known = _published([order.event_key for order in orders])
    why = {}
    for order in orders:
        if touched[order.pk]:
            why[order.pk] = str(OutputsTouchedError(", ".join(touched[order.pk])))
        elif order.event_key not in known:
            why[order.pk] = str(NotInLedgerError(order.event_key))
    return why


def _reverse(order: SplitOrder) -> dict[str, Any]:
    _require(order, OrderStatus.FINALIZED, "only a finalized order can be reversed")
    source = order.source_lot
    # The root lot's row among them: its holder alone publishes for the aggregate.
    lots = Lot.objects.filter(
        Q(pk=source.pk) | Q(parent_order=order) | Q(code=source.root_code)
    ).locked()
    outputs = [lot for lot in lots if lot.parent_order_id == order.pk]
    _require_untouched(outputs)
    _require_published(order)
    Lot.objects.filter(pk__in=[lot.pk for lot in outputs]).cancel()
    Lot.objects.filter(pk=source.pk).restore()
    outbox.publish(
        event_key=order.reversal_key,
        event_type=REVERSED_EVENT,
        aggregate=source.aggregate,
        lines=[
            outbox.Line(account=line.account, quantity=-line.quantity, unit=line.unit)
            for line in postings(order)
        ],
    )
    SplitOrder.objects.filter(pk=order.pk).mark_reversed()
    return {
        "source_lot": source.code,
        "cancelled_lots": sorted(lot.code for lot in outputs),
        "publishes": order.reversal_key,
    }


def _require_untouched(outputs: Sequence[Lot]) -> None:
    orders = SplitOrder.objects.filter(live_lot__in=outputs)
    held = set(orders.values_list("live_lot__code", flat=True))
    used = {lot.code for lot in outputs if lot.status != LotStatus.AVAILABLE}
    if touched := sorted(used | held):
        raise OutputsTouchedError(", ".join(touched))


def _require_published(order: SplitOrder) -> None:
    if not _published([order.event_key]):
        raise NotInLedgerError(order.event_key)


def _published(keys: Sequence[str]) -> set[str]:
    """Return the keys that are in the ledger, or on their way to it."""
    live = OutboxEntry.objects.filter(event_key__in=keys).exclude(status=EntryStatus.DISCARDED)
    posted = Transaction.objects.filter(event_key__in=keys)
    found = (it.order_by().values_list("event_key", flat=True) for it in (live, posted))
    return set(chain.from_iterable(found))


def _require(order: SplitOrder, status: OrderStatus, rule: str) -> None:
    if order.status != status:
        raise WrongStatusError(f"{rule}; {order.number} is {order.status}")
