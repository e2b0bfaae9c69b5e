"""The five steps of a finalization; each runs in one transaction with the order's row locked."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from django.core.exceptions import ValidationError

from ledger import outbox
from recovery.fields import KEY_MAX_LENGTH, InexactQuantityError
from splits.errors import (
    CodeTakenError,
    CodeTooLongError,
    LedgerRefusedError,
    LotNotAvailableError,
    NoLinesError,
    SumMismatchError,
)
from splits.models import Lot, LotStatus, SplitLine, SplitOrder, StepName

FINALIZED_EVENT = "split-order-finalized"
DIGEST_LENGTH = 16


def child_code(source_code: str, line: int) -> str:
    """Return the code of the child lot that ``line`` makes: the board's and three digits."""
    return f"{source_code}-{line:03d}"


def postings(order: SplitOrder) -> list[outbox.Line]:
    """Return the stock movement of ``order``: out of the source lot's SKU, into its lines'."""
    source = order.source_lot
    out = outbox.Line(f"stock:{source.sku}", -source.quantity, source.unit)
    into = (outbox.Line(f"stock:{it.sku}", it.quantity, source.unit) for it in order.all_lines())
    return [out, *into]


def event_of(order: SplitOrder) -> outbox.Event:
    """Return what the ledger is told of ``order``."""
    aggregate = order.source_lot.aggregate
    return outbox.Event(order.event_key, FINALIZED_EVENT, aggregate, postings(order))


def outputs_of(order: SplitOrder) -> list[Lot]:
    """Return the child lots of ``order``, not yet stored."""
    return [_output(order, order.source_lot, line) for line in order.all_lines()]


def validate(order: SplitOrder) -> None:
    """Check what later steps rely on; change nothing.

    Raises NoLinesError, SumMismatchError, LotNotAvailableError, CodeTooLongError.
    """
    lines, source = order.all_lines(), order.source_lot
    if not lines:
        raise NoLinesError(order.number)
    total = sum((line.quantity for line in lines), Decimal(0))
    if total != source.quantity:
        raise SumMismatchError(
            f"{outbox.quantity_text(total)} in lines,"
            f" {outbox.quantity_text(source.quantity)} in {source.code}"
        )
    _require_available(source)
    for code in (child_code(source.code, 1), source.aggregate):
        if len(code) > KEY_MAX_LENGTH:
            raise CodeTooLongError(f"{code} has {len(code)} characters, not {KEY_MAX_LENGTH}")


def _require_available(source: Lot) -> None:
    if source.status != LotStatus.AVAILABLE:
        raise LotNotAvailableError(f"{source.code} is {source.status}")


def consume_source(order: SplitOrder) -> None:
    """Consume the source lot; raise LotNotAvailableError."""
    source = Lot.objects.select_for_update().get(pk=order.source_lot_id)
    _require_available(source)
    Lot.objects.filter(pk=source.pk).consume()


def create_outputs(order: SplitOrder) -> None:
    """Create the child lots; raise CodeTakenError.

    Codes that cancelled lots of a reversed order still have are taken back first.
    """
    lots = outputs_of(order)
    _free_codes([lot.code for lot in lots])
    Lot.objects.bulk_create(lots)


def _output(order: SplitOrder, source: Lot, line: SplitLine) -> Lot:
    return Lot(
        code=child_code(source.code, line.line),
        sku=line.sku,
        quantity=line.quantity,
        unit=source.unit,
        parent_order=order,
        root_code=source.root_code,
    )


def _free_codes(codes: Sequence[str]) -> None:
    holders = list(Lot.objects.with_code_in(codes).locked())
    taken = [lot.code for lot in holders if lot.status != LotStatus.CANCELLED]
    if taken:
        raise CodeTakenError(", ".join(taken))
    for lot in holders:
        Lot.objects.filter(pk=lot.pk).rename(_retired_code(lot))


def _retired_code(lot: Lot) -> str:
    """Return ``<code>~<order number>``, or ``<code begun>~<digest>`` where that is too long."""
    number = lot.parent_order.number if lot.parent_order else str(lot.pk)
    code = f"{lot.code}~{number}"
    if len(code) > KEY_MAX_LENGTH:
        digest = hashlib.sha256(code.encode()).hexdigest()[:DIGEST_LENGTH]
        code = f"{lot.code[: KEY_MAX_LENGTH - DIGEST_LENGTH - 1]}~{digest}"
    if Lot.objects.filter(code=code).exists():
        raise CodeTakenError(code)
    return code


def post_ledger(order: SplitOrder) -> None:
    """Publish the stock movement; raise LedgerRefusedError.

    Under the root lot's row lock, so that ids follow commits within the aggregate.
    """
    source = order.source_lot
    list(Lot.objects.filter(code=source.root_code).locked())
    try:
        outbox.publish(**vars(event_of(order)))
    except (outbox.LedgerError, ValidationError, InexactQuantityError) as error:
        raise LedgerRefusedError(str(error)) from error


def notify(_order: SplitOrder) -> None:
    """Record that the outside was told; the POST itself came before, outside any transaction."""


STEPS: Mapping[StepName, Callable[[SplitOrder], None]] = {
    StepName.VALIDATE: validate,
    StepName.CONSUME_SOURCE: consume_source,
    StepName.CREATE_OUTPUTS: create_outputs,
    StepName.POST_LEDGER: post_ledger,
    StepName.NOTIFY: notify,
}
