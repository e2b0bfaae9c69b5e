"""Finalize many orders in one transaction: those that have nothing in their way.

Steps that are pure database work need no commits between them. A worker that dies on the way
leaves nothing behind: no order in progress, no attempt charged, nothing to recover. An order that
was claimed before, whose lot somebody holds or that a step refuses is left to ``finalize``, which
makes an attempt at it alone, step by step.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from django.conf import settings
from django.db import OperationalError, connection, transaction

from ledger import outbox
from recovery import faultpoints, tracing
from recovery.errors import is_infrastructure, is_row_locked, is_too_large, with_retries
from recovery.faultpoints import faultpoint
from recovery.runner import Run
from splits import metrics, steps
from splits.errors import SplitError
from splits.models import FinalizeStep, Lot, SplitLine, SplitOrder, StepName

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 500
"""MariaDB makes a join of an ``IN`` with 1,000 values; a statement stays well below a megabyte."""
MOST_LINES = 5_000
"""Of all orders together: some 0.8 s of work. Those beyond stay due."""


@dataclass
class Journey:
    """What became of a convoy."""

    claimed: int = 0
    arrived: list[SplitOrder] = field(default_factory=list)
    """As they were when claimed."""
    left: list[int] = field(default_factory=list)
    """Those that could not go along."""
    spans: list[Any] = field(default_factory=list)
    """Of those that arrived, where they are traced: to be ended."""

    def add(self, other: "Journey") -> None:
        """Take in what became of another part of the convoy."""
        self.arrived += other.arrived
        self.left += other.left


class _TurnedBackError(Exception):
    """One of these orders kept all of them from going on; nothing is committed."""

    def __init__(self, orders: Sequence[SplitOrder], journey: Journey, *, waited: bool) -> None:
        super().__init__(f"{len(orders)} orders")
        self.ids = [order.pk for order in orders]
        self.journey = journey
        self.waited = waited
        """It waited in vain for what somebody holds, as each half would."""


def may_leave(run: Run | None) -> bool:
    """Tell whether orders may go together.

    Not where a fault is planned between their steps, and not after a run that died, perhaps of one
    of them: it would take the others along again.
    """
    died = run is not None and run.deaths > 0
    alone = died or faultpoints.planned("finalize.")
    return settings.JOB_FINALIZE_BATCH_SIZE > 1 and not alone


def finishes() -> bool:
    """Tell whether orders that arrive are finalized; else the outside has still to be told."""
    return not settings.SPLIT_COMPLETION_WEBHOOK


def finalize_together(limit: int, *, run: Run | None = None) -> Journey:
    """Finalize up to ``limit`` due orders that were never claimed, all in one transaction.

    Where the outside is to be told they come as far as that. Halved where one of them is refused;
    not where they would wait for somebody, nor once the run is over. Raises LeaseLostError and
    infrastructure errors that stay: nothing, or a part of what was halved, is committed then.
    """
    return _halved(None, limit, run)


def _halved(ids: Sequence[int] | None, limit: int, run: Run | None) -> Journey:
    try:
        return _counted(partial(_travel, ids, limit, run))
    except _TurnedBackError as turned:
        journey = turned.journey
        if len(turned.ids) == 1 or turned.waited or (run and run.over()):
            journey.left += turned.ids
            return journey
        middle = len(turned.ids) // 2
        for half in (turned.ids[:middle], turned.ids[middle:]):
            journey.add(_halved(half, len(half), run))
        return journey


def _counted(travel: "partial[Journey]") -> Journey:
    begun = time.monotonic()
    journey = with_retries(travel)
    for span in journey.spans:
        span.end()
    journey.spans = []
    if journey.claimed:
        faultpoint("convoy.after_commit")
    duration_s = time.monotonic() - begun
    for order in journey.arrived if finishes() else ():
        metrics.finalized(duration_s)
        facts = {"order": order.number, "attempt": 1, "epoch": order.finalize_epoch + 1}
        logger.info("finalized", extra={**facts, "duration_s": round(duration_s, 3)})
    return journey


def _travel(ids: Sequence[int] | None, limit: int, run: Run | None) -> Journey:
    """Claim orders and take their steps in one transaction."""
    with transaction.atomic():
        orders = _with_their_lines(_claimed(ids, limit))
        journey = Journey(claimed=len(orders))
        if not orders:
            return journey
        going = _unhindered(orders)
        journey.left = sorted({it.pk for it in orders} - {it.pk for it in going})
        try:
            if going:
                journey.spans = _take_steps(going)
        except Exception as error:
            waited = isinstance(error, OperationalError) and is_row_locked(error)
            if is_infrastructure(error) and not is_too_large(error) and not waited:
                raise
            logger.info("convoy_turned_back", exc_info=error, extra={"orders": len(going)})
            raise _TurnedBackError(going, journey, waited=waited) from error
        journey.arrived = going
        faultpoint("convoy.before_commit")
        if run:
            run.renew_lease()
    return journey


def _claimed(ids: Sequence[int] | None, limit: int) -> list[SplitOrder]:
    """Lock and return due orders that were never claimed and that nobody has locked."""
    skip_locked = connection.features.has_select_for_update_skip_locked
    fresh = SplitOrder.objects.due().filter(finalize_epoch=0)
    if ids is not None:
        fresh = fresh.filter(pk__in=ids)
    fresh = fresh.order_by("next_finalize_at", "id").select_for_update(skip_locked=skip_locked)
    return list(fresh[:limit])


def _unhindered(orders: Sequence[SplitOrder]) -> list[SplitOrder]:
    """Return those with lots to be had at once, valid, their codes free."""
    going = [order for order in _with_their_lots(orders) if _is_valid(order)]
    codes = {lot.code: order.pk for order in going for lot in steps.outputs_of(order)}
    hindered = {codes[code] for code in _taken(list(codes))}
    return [order for order in going if order.pk not in hindered]


def _taken(codes: Sequence[str]) -> Iterator[str]:
    """Yield those of ``codes`` that a lot has."""
    for start in range(0, len(codes), ROWS_AT_ONCE):
        some = codes[start : start + ROWS_AT_ONCE]
        yield from Lot.objects.with_code_in(some).values_list("code", flat=True)


def _with_their_lines(orders: Sequence[SplitOrder]) -> list[SplitOrder]:
    """Read the lines of all orders at once; leave out orders of which there would be too many."""
    found: defaultdict[int, list[SplitLine]] = defaultdict(list)
    lines = SplitLine.objects.filter(order__in=orders).order_by("order_id", "line")
    for line in lines[: MOST_LINES + 1]:
        found[line.order_id].append(line)
    cut = max(found) if sum(map(len, found.values())) > MOST_LINES else None
    going = [order for order in orders if cut is None or order.pk < cut]
    for order in going:
        order.keep_lines(found[order.pk])
    return going


def _with_their_lots(orders: Sequence[SplitOrder]) -> list[SplitOrder]:
    """Lock the source and root lots, those that nobody has locked; return the orders they are of.

    In id order, as everywhere; whoever holds the root lot publishes for its aggregate.
    """
    sources = Lot.objects.in_bulk({order.source_lot_id for order in orders})
    wanted = {lot.root_code for lot in sources.values()}
    roots = dict(Lot.objects.with_code_in(wanted).values_list("code", "pk")) if wanted else {}
    locked = {lot.pk: lot for lot in Lot.objects.locked_at_once({*sources, *roots.values()})}
    going = []
    for order in orders:
        source = locked.get(order.source_lot_id)
        if source and roots.get(source.root_code, source.pk) in locked:
            order.source_lot = source
            going.append(order)
    return going


def _is_valid(order: SplitOrder) -> bool:
    try:
        steps.validate(order)
    except SplitError:
        return False
    return True


def _take_steps(orders: Sequence[SplitOrder]) -> list[Any]:
    """Take all steps of orders that are valid and locked, with their lots; return their spans."""
    events, spans = _events(orders)
    Lot.objects.filter(pk__in=[order.source_lot_id for order in orders]).consume()
    lots = (lot for order in orders for lot in steps.outputs_of(order))
    Lot.objects.bulk_create(lots, batch_size=ROWS_AT_ONCE)
    outbox.publish_all(events)
    taken = [step for step in StepName if finishes() or step is not StepName.NOTIFY]
    FinalizeStep.objects.bulk_create(
        FinalizeStep(order=order, name=step, epoch=order.finalize_epoch + 1)
        for order in orders
        for step in taken
    )
    this = SplitOrder.objects.filter(pk__in=[order.pk for order in orders])
    if finishes():
        this.finish_locked()
    else:
        this.advance_locked()
    return spans


def _events(orders: Sequence[SplitOrder]) -> tuple[list[outbox.Event], list[Any]]:
    """Return what the ledger is told of each order, and the span, begun, that it happens in."""
    events = list(map(steps.event_of, orders))
    if not tracing.enabled():
        return events, []
    spans = [
        tracing.begun(
            "split_order.finalize",
            traceparent=order.traceparent,
            order=order.number,
            attempt=1,
            epoch=order.finalize_epoch + 1,
            convoy=len(orders),
        )
        for order in orders
    ]
    traced = zip(events, spans, strict=True)
    events = [replace(event, traceparent=span.traceparent) for event, span in traced]
    traceparents = (order.traceparent for order in orders)
    whole = tracing.together("split_order.convoy", traceparents, orders=len(orders))
    return events, [*spans, whole]
