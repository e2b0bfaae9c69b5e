"""Finalizations that hang: find them, prove that nobody holds them, reset them."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import structlog
from django.conf import settings
from django.db import OperationalError, connection, transaction

from recovery.clock import db_now
from recovery.errors import is_row_locked, with_retries
from recovery.models import JobRun
from recovery.runner import Run
from recovery.wakeups import wake_on_commit
from splits import audit, lifecycle, metrics
from splits.audit import Author
from splits.holders import HOLDERS_CHANGE, Holder, find_holder
from splits.models import OrderStatus, SplitOrder, StuckSighting

logger = logging.getLogger(__name__)

LONGEST_THRESHOLD_S = 1e9
FOUND_BY = ("pk", "number", "finalize_epoch", "finalize_attempts")


class Result(StrEnum):
    """What became of an order that was found stuck."""

    RECOVERED = "recovered"
    FAILED = "failed"
    """Reset, but its attempts are used up."""
    QUARANTINED = "quarantined"
    RELEASED = "released"
    HELD = "held"
    GONE = "gone"
    """Not stuck any more: somebody was first, or it made progress."""


@dataclass(frozen=True)
class Recovery:
    """What became of one order, and who holds it where somebody does."""

    number: str
    result: Result
    holder: Holder | None = None


@dataclass(frozen=True)
class Request:
    """How to recover: from which age, by whom, and what an operator may add."""

    author: Author
    threshold_s: float
    due: bool = True
    """Without it a reset order waits for an operator to start it."""
    force: bool = False
    """Also orders in progress younger than the threshold, and quarantined ones."""
    run: Run | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Found:
    """An order that is stuck, as a plain read saw it."""

    order_id: int
    number: str
    epoch: int
    attempt: int

    def facts(self) -> dict[str, Any]:
        """Return what log records say of it."""
        return {"order": self.number, "epoch": self.epoch, "attempt": self.attempt}


def find(request: Request, numbers: Iterable[str] = ()) -> Iterator[Found]:
    """Yield the orders that ``request`` fits, of ``numbers`` where some are given, by id."""
    orders = SplitOrder.objects.stuck(request.threshold_s)
    if request.force:
        quarantined = SplitOrder.objects.filter(status=OrderStatus.QUARANTINED)
        orders = SplitOrder.objects.in_progress() | quarantined
    wanted = list(numbers)
    if wanted:
        orders = orders.filter(number__in=wanted)
    # All at once: for the sake of a LIMIT MariaDB would walk the primary key.
    for row in list(orders.order_by("pk").values_list(*FOUND_BY)):
        yield Found(*row)


def recover(found: Found, request: Request) -> Recovery:
    """Reset one order, if no live transaction holds its row and it is still stuck.

    Does not say who holds it: ``name_holder`` does, and takes its time.
    Raises LeaseLostError.
    """
    with structlog.contextvars.bound_contextvars(**found.facts()):
        try:
            recovery = with_retries(lambda: recover_uncounted(found, request))
        except OperationalError as error:
            if not is_row_locked(error):
                raise
            recovery = Recovery(found.number, Result.HELD)
        note(found, recovery)
    return recovery


def name_holder(found: Found, request: Request) -> Recovery:
    """Say who holds an order; where the holder is gone by now, recover the order after all."""
    with structlog.contextvars.bound_contextvars(**found.facts()):
        holder = find_holder(found.order_id)
        if holder is None:
            recovery = recover(found, request)
            if recovery.result is not Result.HELD:
                return recovery
            holder = find_holder(found.order_id) or Holder(hint=HOLDERS_CHANGE)
        note_holder(found, holder)
    return Recovery(found.number, Result.HELD, holder)


def holder_now(order_id: int) -> Holder | None:
    """Return who holds the order's row, without a trace; None: nobody, as far as is to be seen."""
    if connection.vendor != "mysql":
        return None  # who holds SQLite's one lock lets nobody ask
    with transaction.atomic():
        if _proven_free(order_id):
            return None
    return find_holder(order_id)


def note_holder(found: Found, holder: Holder) -> None:
    """Keep and log who holds the order, for the record of its reset."""
    logger.warning("split_order_held", extra={**found.facts(), "holder": holder.as_dict()})
    sightings = StuckSighting.objects.of(found.order_id, found.epoch)
    _noted(lambda: sightings.note_holder(holder.as_dict()))


def _noted(note: Callable[[], bool]) -> bool:
    """Note something of a sighting; on SQLite whoever holds the order holds this back as well."""
    try:
        return note()
    except OperationalError as error:
        if not is_row_locked(error):
            raise
        logger.info("sighting_not_noted", extra={"error": str(error)})
        return False


def recover_uncounted(found: Found, request: Request) -> Recovery:
    """Reset one order, if nobody holds its row and it is still stuck; neither count nor log it."""
    with transaction.atomic():
        order = _proven_free(found.order_id)
        if order is None:
            return Recovery(found.number, Result.HELD)
        # A later finalizer that hangs too is the next search's: this one saw another.
        same = order.finalize_epoch == found.epoch
        result = reset_locked(order, request) if same else Result.GONE
        if request.run:
            request.run.renew_lease()
    return Recovery(found.number, result)


def _proven_free(order_id: int) -> SplitOrder | None:
    """Lock the row without waiting: the proof that no live transaction holds it.

    None: one does. On SQLite the write lock, which BEGIN IMMEDIATE took, is the proof.
    """
    nowait = connection.features.has_select_for_update_nowait
    try:
        with transaction.atomic():
            return SplitOrder.objects.select_for_update(nowait=nowait).get(pk=order_id)
    except OperationalError as error:
        if is_row_locked(error):
            return None
        raise


def reset_locked(order: SplitOrder, request: Request) -> Result:
    """Reset an order whose row the caller locked without waiting, if it is still stuck."""
    if order.status == OrderStatus.QUARANTINED and request.force:
        lifecycle.release(order.pk, author=request.author, due=request.due)
        return Result.RELEASED
    this = SplitOrder.objects.filter(pk=order.pk)
    stuck = this.in_progress() if request.force else this.stuck(request.threshold_s)
    if not stuck.exists():
        return Result.GONE
    return _reset(order, request)


def _reset(order: SplitOrder, request: Request) -> Result:
    now = db_now()
    recovered_at = _within_window([*order.recovered_at, now.isoformat()], now)
    charged = not JobRun.objects.stood_still_after(_progress_at(order), now=now)
    result = _verdict(order, len(recovered_at), charged=charged)
    status = {Result.QUARANTINED: OrderStatus.QUARANTINED, Result.FAILED: OrderStatus.FAILED}.get(
        result, OrderStatus.READY
    )
    due = result is Result.RECOVERED and request.due
    SplitOrder.objects.filter(pk=order.pk).reset(
        order.finalize_epoch,
        status=status,
        next_finalize_at=now if due else None,
        recovered_at=recovered_at,
        charged=charged,
    )
    evidence = {**_evidence(order, request, now), "attempt_charged": charged}
    _record(order, result, request, evidence)
    if due:
        wake_on_commit(lifecycle.FINALIZE_JOB)
    return result


def _within_window(times: list[str], now: datetime) -> list[str]:
    oldest = now - timedelta(seconds=settings.JOB_STUCK_ALERT_WINDOW_SEC)
    return [time for time in times if datetime.fromisoformat(time) >= oldest]


def _progress_at(order: SplitOrder) -> datetime:
    return order.finalize_progress_at or order.created_at


def _verdict(order: SplitOrder, recoveries: int, *, charged: bool) -> Result:
    """Decide; ``recoveries`` counts those within the alert window, this one included."""
    if recoveries > settings.JOB_STUCK_ALERT_THRESHOLD:
        return Result.QUARANTINED
    if charged and order.finalize_attempts >= settings.JOB_FINALIZE_RETRY_LIMIT:
        return Result.FAILED
    return Result.RECOVERED


def _record(order: SplitOrder, result: Result, request: Request, evidence: dict[str, Any]) -> None:
    actions = {
        Result.RECOVERED: [audit.RECOVERED],
        Result.FAILED: [audit.RECOVERED, audit.RETRY_LIMIT],
        Result.QUARANTINED: [audit.QUARANTINED],
    }[result]
    for action in actions:
        audit.record(order, action, author=request.author, evidence=evidence)


def _evidence(order: SplitOrder, request: Request, now: datetime) -> dict[str, Any]:
    """Return what the reset rests on."""
    progress_at = _progress_at(order)
    return {
        "epoch": order.finalize_epoch,
        "finalizer": order.finalize_owner,
        "progress_at": progress_at.isoformat(),
        "age_s": round((now - progress_at).total_seconds(), 3),
        "threshold_s": request.threshold_s,
        "forced": request.force,
        "proof": _proof(),
        **_held_before(order),
    }


def _held_before(order: SplitOrder) -> dict[str, Any]:
    """Return who was last seen to hold the order's row in this epoch, where somebody was."""
    sighting = StuckSighting.objects.of(order.pk, order.finalize_epoch).first()
    if sighting is None or sighting.held_at is None:
        return {}
    return {"held_before": {"at": sighting.held_at.isoformat(), **(sighting.held_by or {})}}


def _proof() -> dict[str, Any]:
    """Return how it is known, in this transaction, that nobody else holds the row."""
    if connection.vendor != "mysql":
        return {"how": "BEGIN IMMEDIATE was granted", "connection_id": None}
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        (connection_id,) = cursor.fetchone()
    return {"how": "SELECT FOR UPDATE NOWAIT was granted", "connection_id": connection_id}


def note(found: Found, recovery: Recovery) -> None:
    """Count and log, after the commit; each epoch of an order is detected once."""
    if recovery.result in (Result.GONE, Result.RELEASED):
        return
    if recovery.result is not Result.HELD:
        metrics.recovered()
    if _noted(lambda: StuckSighting.objects.first_time(found.order_id, found.epoch)):
        metrics.stuck_detected()
    if recovery.result is Result.HELD:
        return
    facts = {**found.facts(), "result": str(recovery.result)}
    if recovery.result is Result.QUARANTINED:
        logger.error("split_order_quarantined", extra={**facts, "code": "quarantined"})
    else:
        logger.warning("split_order_recovered", extra=facts)
