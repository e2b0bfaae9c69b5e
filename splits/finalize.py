"""Finalize one split order: claim it, take the steps not done yet, say how it ended."""

import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, transaction

from recovery import backoff, leftovers, tracing
from recovery.errors import is_infrastructure, with_retries
from recovery.faultpoints import faultpoint
from recovery.leases import HOST, LeaseLostError
from recovery.runner import Run
from splits import audit, metrics, notify
from splits.audit import Author
from splits.errors import EndpointDownError, FencedError, SplitError
from splits.models import FinalizeStep, OrderStatus, SplitOrder, SplitOrderQuerySet, StepName
from splits.steps import STEPS

logger = logging.getLogger(__name__)

UNEXPECTED = "unexpected"
INFRASTRUCTURE = "infrastructure"


class Ending(StrEnum):
    """How an attempt ended."""

    FINALIZED = "finalized"
    FAILED = "failed"
    FENCED = "fenced"
    """The finalizer was reset: another one may hold the order."""
    POSTPONED = "postponed"
    """Not the order's fault, and not charged to it."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended and, where it did not finalize, why."""

    ending: Ending
    code: str = ""
    error: str = ""


@dataclass
class Attempt:
    """A claimed order: while its epoch is ours, what we do to it commits."""

    order_id: int
    number: str
    epoch: int
    owner: str
    attempt: int
    author: Author
    run: Run | None = None
    traceparent: str = ""
    started: float = field(default_factory=time.monotonic)

    def mine(self) -> SplitOrderQuerySet:
        """Return the order if the claim is still ours.

        A database brought back from a backup hands out ids and epochs again: an order that is
        imported once more may have ours. The claim's token comes only once.
        """
        return SplitOrder.objects.filter(pk=self.order_id, finalize_owner=self.owner)

    def hold(self) -> SplitOrder:
        """Note progress, which locks the order's row, and return it; raise FencedError."""
        if not self.mine().progress(self.epoch):
            raise FencedError(self.number)
        return SplitOrder.objects.select_related("source_lot").get(pk=self.order_id)

    def renew_lease(self) -> None:
        """Renew the job's lease, as a transaction's last statement; raise LeaseLostError."""
        if self.run:
            self.run.renew_lease()

    def progressed(self) -> None:
        """Beat, after a commit."""
        if self.run:
            self.run.progressed()

    def was_ended(self) -> bool:
        """Tell whether this attempt ended already, by a COMMIT whose answer was lost."""
        ended = SplitOrder.objects.filter(finalize_epoch=self.epoch, finalize_in_progress=False)
        return ended.filter(pk=self.order_id, number=self.number).exists()


def finalize(
    order_id: int, *, author: Author, run: Run | None = None, now: bool = False
) -> Outcome | None:
    """Make one attempt to finalize the order; None: it was not to be had.

    With ``now`` whatever its ``next_finalize_at`` says. What goes wrong with the order is in
    the outcome. Raises LeaseLostError, and the database's errors where the claim fails.
    """
    attempt = claim(order_id, author=author, run=run, now=now)
    if attempt is None:
        return None
    if attempt.attempt > 1:
        metrics.finalize_retried()
    return pursue(attempt)


def claim(
    order_id: int, *, author: Author, run: Run | None = None, now: bool = False
) -> Attempt | None:
    """Claim the order for one attempt, counted here; None: another one has it or it is not due."""
    owner = f"{HOST}:{os.getpid()}:{secrets.token_hex(8)}"

    def take() -> SplitOrder | None:
        with transaction.atomic():
            orders = SplitOrder.objects.filter(pk=order_id)
            order = _locked(orders if now else orders.due())
            if order is not None:
                orders.claim(owner)
            if run:
                run.renew_lease()
            # Also found where an earlier COMMIT happened though its answer was lost.
            return orders.filter(finalize_owner=owner).first()

    try:
        order = with_retries(take)
    except (DatabaseError, InterfaceError, LeaseLostError):  # it may be lost by a second try
        _leave(order_id, partial(_unclaim, order_id, owner))
        raise
    if order is None:
        return None
    return Attempt(
        order.pk,
        order.number,
        order.finalize_epoch,
        owner,
        order.finalize_attempts,
        author,
        run,
        order.traceparent,
    )


def _locked(orders: Any) -> SplitOrder | None:
    skip_locked = connection.features.has_select_for_update_skip_locked
    order: SplitOrder | None = orders.select_for_update(skip_locked=skip_locked).first()
    return order


def _unclaim(order_id: int, owner: str) -> None:
    """Give back what a claim took of which we know the owner alone: its COMMIT had no answer."""
    order = SplitOrder.objects.filter(pk=order_id, finalize_owner=owner).first()
    if order is not None:
        error = "the claim was not answered"
        SplitOrder.objects.filter(pk=order_id).postpone(
            order.finalize_epoch, code=INFRASTRUCTURE, error=error, delay_s=0
        )


def pursue(attempt: Attempt) -> Outcome:
    """Take the steps of a claimed order and finish; turn what goes wrong into an outcome."""
    facts = _facts(attempt)
    traced = tracing.attempt(
        "split_order.finalize",
        traceparent=attempt.traceparent,
        first=attempt.attempt == 1,
        **facts,
    )
    with structlog.contextvars.bound_contextvars(**facts), traced as span:
        outcome = _pursue(attempt)
        span.note(ending=outcome.ending.value)
        if outcome.code:
            span.fail(outcome.code)
        return outcome


def _pursue(attempt: Attempt) -> Outcome:
    try:
        _take_steps(attempt)
        _finish(attempt)
    except FencedError as error:
        logger.warning("finalize_fenced", extra={**_facts(attempt), "code": error.code})
        return Outcome(Ending.FENCED, error.code, str(error))
    except EndpointDownError as error:
        return _postpone(attempt, error.code, str(error), delay_s=error.retry_in_s)
    except (LeaseLostError, KeyboardInterrupt) as error:
        name = type(error).__name__
        _postpone(attempt, name, str(error) or name, delay_s=0)
        raise
    except Exception as error:  # noqa: BLE001 - whatever a step raises is the order's failure
        if is_infrastructure(error):
            delay_s = settings.JOB_BACKOFF_BASE_SEC
            return _postpone(attempt, INFRASTRUCTURE, str(error), delay_s=delay_s)
        return _fail(attempt, error)
    duration_s = time.monotonic() - attempt.started
    metrics.finalized(duration_s)
    logger.info("finalized", extra={**_facts(attempt), "duration_s": round(duration_s, 3)})
    return Outcome(Ending.FINALIZED)


def _take_steps(attempt: Attempt) -> None:
    steps = FinalizeStep.objects.filter(order_id=attempt.order_id)
    done = with_retries(lambda: set(steps.values_list("name", flat=True)))
    for step in StepName:
        if step not in done:
            faultpoint(f"finalize.before_step.{step}")
            if step == StepName.NOTIFY:
                _tell_outside(attempt)
            with tracing.span(f"split_order.{step}"):
                with_retries(partial(_commit_step, attempt, step))
            faultpoint(f"finalize.after_step.{step}")
            attempt.progressed()


def _commit_step(attempt: Attempt, step: StepName) -> None:
    """Take one step in one transaction; the step's row says that it is done."""
    with transaction.atomic():
        order = attempt.hold()
        if order.steps.filter(name=step).exists():
            return  # an earlier COMMIT whose answer was lost
        STEPS[step](order)
        FinalizeStep.objects.create(order=order, name=step, epoch=attempt.epoch)
        faultpoint(f"finalize.in_step.{step}")
        attempt.renew_lease()


def _tell_outside(attempt: Attempt) -> None:
    """Call the completion endpoint, where there is one, outside any transaction."""
    if notify.is_wanted(attempt.number):
        notify.tell(with_retries(partial(_note_progress, attempt)))


def _note_progress(attempt: Attempt) -> SplitOrder:
    with transaction.atomic():
        order = attempt.hold()
        attempt.renew_lease()
    return order


def _finish(attempt: Attempt) -> None:
    faultpoint("finalize.before_finish")
    _end(attempt, lambda orders: orders.finish(attempt.epoch))


def _end(
    attempt: Attempt, verb: Callable[[SplitOrderQuerySet], bool], *, leased: bool = True
) -> None:
    """End the attempt by ``verb``, once though its COMMIT may be repeated; raise FencedError."""

    def end() -> None:
        with transaction.atomic():
            if not verb(attempt.mine()):
                if attempt.was_ended():
                    return
                raise FencedError(attempt.number)
            if leased:
                attempt.renew_lease()

    with_retries(end)


def _fail(attempt: Attempt, error: Exception) -> Outcome:
    code = error.code if isinstance(error, SplitError) else UNEXPECTED
    text = str(error) if isinstance(error, SplitError) else f"{type(error).__name__}: {error}"
    logger.error("finalize_failed", exc_info=error, extra={**_facts(attempt), "code": code})
    return _charge(attempt, code, text)


def _charge(attempt: Attempt, code: str, text: str, *, leased: bool = True) -> Outcome:
    """End the attempt as failed; where the database cannot be reached, at a later run."""
    exhausted = attempt.attempt >= settings.JOB_FINALIZE_RETRY_LIMIT
    delay_s = None if exhausted else backoff.delay_sec(attempt.attempt)

    def verb(orders: SplitOrderQuerySet) -> bool:
        before = orders.first()
        if before is None or not orders.fail(attempt.epoch, code=code, error=text, delay_s=delay_s):
            return False
        _audit_failure(attempt, before, code=code, error=text)
        return True

    try:
        _end(attempt, verb, leased=leased)
    except FencedError as fenced:
        return Outcome(Ending.FENCED, fenced.code, str(fenced))
    except (DatabaseError, InterfaceError) as trouble:
        if not is_infrastructure(trouble):
            raise
        return _left(attempt, trouble, partial(_charge, attempt, code, text, leased=False))
    return Outcome(Ending.FAILED, code, text)


def _audit_failure(attempt: Attempt, before: SplitOrder, *, code: str, error: str) -> None:
    evidence = {"code": code, "error": error, "attempt": attempt.attempt}
    record = partial(audit.record, before, author=attempt.author)
    after = record(audit.FAILED, cause="an attempt failed", evidence=evidence)
    if after.status == OrderStatus.FAILED:
        evidence["limit"] = settings.JOB_FINALIZE_RETRY_LIMIT
        record(audit.RETRY_LIMIT, cause="its attempts are used up", evidence=evidence)


def _postpone(attempt: Attempt, code: str, text: str, *, delay_s: float) -> Outcome:
    """Give the order back uncharged; where the database cannot be reached, at a later run.

    Not under the lease, which may be what was lost: the epoch alone guards it.
    """
    try:
        _end(
            attempt,
            lambda orders: orders.postpone(attempt.epoch, code=code, error=text, delay_s=delay_s),
            leased=False,
        )
    except FencedError as fenced:
        return Outcome(Ending.FENCED, fenced.code, str(fenced))
    except (DatabaseError, InterfaceError) as trouble:
        return _left(attempt, trouble, partial(_postpone, attempt, code, text, delay_s=delay_s))
    logger.warning("finalize_postponed", extra={**_facts(attempt), "code": code, "error": text})
    return Outcome(Ending.POSTPONED, code, text)


def _left(attempt: Attempt, trouble: Exception, again: Callable[[], Outcome]) -> Outcome:
    """Leave the order in progress until this process' next run, or recoverFinalizeStuck."""
    facts = {**_facts(attempt), "code": INFRASTRUCTURE, "error": str(trouble)}
    logger.warning("finalize_left_in_progress", extra=facts)
    _leave(attempt.order_id, again)
    return Outcome(Ending.POSTPONED, INFRASTRUCTURE, str(trouble))


def _leave(order_id: int, action: Callable[[], object]) -> None:
    leftovers.leave(action, rows=SplitOrder.objects.filter(pk=order_id))


def _facts(attempt: Attempt) -> dict[str, Any]:
    return {"order": attempt.number, "attempt": attempt.attempt, "epoch": attempt.epoch}
