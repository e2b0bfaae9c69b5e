"""A plain finalizer: an order at a time, a transaction a step, rows by the ORM; no lease or epoch.

What a competent team writes first. It ends in the same rows as the product's own.
"""

from decimal import Decimal

from django.db import transaction
from django.db.models.functions import Now

from ledger import outbox
from splits.models import FinalizeStep, Lot, LotStatus, OrderStatus, SplitOrder, StepName
from splits.steps import FINALIZED_EVENT, child_code


class NotThisOrderError(Exception):
    """The order cannot be finalized."""


def finalize_all() -> int:
    """Finalize every order that is due; return how many."""
    due = SplitOrder.objects.due().order_by("next_finalize_at", "id")
    ids = list(due.values_list("pk", flat=True))
    for order_id in ids:
        finalize(order_id)
    return len(ids)


def finalize(order_id: int) -> None:
    """Finalize one order."""
    with transaction.atomic():
        order = SplitOrder.objects.select_for_update().get(pk=order_id)
        order.finalize_in_progress = True
        order.finalize_epoch += 1
        order.finalize_attempts += 1
        order.finalize_started_at = Now()
        order.finalize_progress_at = Now()
        order.save()
    for step in StepName:
        with transaction.atomic():
            order = SplitOrder.objects.select_for_update().get(pk=order_id)
            if not order.steps.filter(name=step).exists():
                STEPS[step](order)
                FinalizeStep.objects.create(order=order, name=step, epoch=order.finalize_epoch)
                order.finalize_progress_at = Now()
                order.save(update_fields=["finalize_progress_at"])
    with transaction.atomic():
        order = SplitOrder.objects.select_for_update().get(pk=order_id)
        order.status = OrderStatus.FINALIZED
        order.finalize_in_progress = False
        order.finalized_at = Now()
        order.next_finalize_at = None
        order.save()


def _validate(order: SplitOrder) -> None:
    total = sum((line.quantity for line in order.lines.all()), Decimal(0))
    if total != order.source_lot.quantity or order.source_lot.status != LotStatus.AVAILABLE:
        raise NotThisOrderError(order.number)


def _consume_source(order: SplitOrder) -> None:
    lot = Lot.objects.select_for_update().get(pk=order.source_lot_id)
    if lot.status != LotStatus.AVAILABLE:
        raise NotThisOrderError(order.number)
    lot.status = LotStatus.CONSUMED
    lot.save()


def _create_outputs(order: SplitOrder) -> None:
    source = order.source_lot
    Lot.objects.bulk_create(
        Lot(
            code=child_code(source.code, line.line),
            sku=line.sku,
            quantity=line.quantity,
            unit=source.unit,
            parent_order=order,
            root_code=source.root_code,
        )
        for line in order.lines.order_by("line")
    )


def _post_ledger(order: SplitOrder) -> None:
    source = Lot.objects.select_for_update().get(pk=order.source_lot_id)
    moves = [(f"stock:{source.sku}", -source.quantity)]
    moves += [(f"stock:{line.sku}", line.quantity) for line in order.lines.order_by("line")]
    outbox.publish(
        event_key=order.event_key,
        event_type=FINALIZED_EVENT,
        aggregate=source.aggregate,
        lines=[outbox.Line(account, quantity, source.unit) for account, quantity in moves],
    )


def _notify(_order: SplitOrder) -> None:
    """Tell nobody: no endpoint is configured."""


STEPS = {
    StepName.VALIDATE: _validate,
    StepName.CONSUME_SOURCE: _consume_source,
    StepName.CREATE_OUTPUTS: _create_outputs,
    StepName.POST_LEDGER: _post_ledger,
    StepName.NOTIFY: _notify,
}
