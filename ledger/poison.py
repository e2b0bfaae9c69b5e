"""After runs that died: work one entry at a time, its attempt counted before the work."""

import logging
from functools import partial

import structlog
from django.db import DatabaseError, InterfaceError, transaction

from ledger import metrics, parking, rows, traces
from ledger.models import ErrorCode, OutboxEntry
from ledger.payloads import RefusedError
from ledger.posting import Policy, Result, post_these
from recovery import leftovers
from recovery.errors import is_infrastructure, with_retries
from recovery.leases import LeaseLostError
from recovery.registry import Batch
from recovery.runner import Run

logger = logging.getLogger(__name__)


def post_one_at_a_time(run: Run, policy: Policy, *, limit: int) -> Batch:
    """Post up to ``limit`` due entries one by one; an entry that kills workers ends in the DLQ.

    The attempt is committed before the work, and given back after an infrastructure error.
    Raises the first error that kept an entry from being charged, after all were worked.
    """
    logger.warning("entries_one_at_a_time", extra={"deaths": run.deaths})
    total = Result()
    due = OutboxEntry.objects.due().order_by("next_attempt_at", "id")
    for pk in list(due.values_list("pk", flat=True)[:limit]):
        if run.over():
            break
        since_ns = traces.begun_ns()
        result = post_with_care(policy, pk)
        traces.tell(result, since_ns=since_ns)
        total.add(result)
        run.progressed()
    if total.errors:
        raise total.errors[0]
    return Batch({**total.counts(), **metrics.by_code(total)}, more=total.progressed())


def post_with_care(policy: Policy, pk: int) -> Result:
    """Post one pending entry alone, its attempt counted before the work."""
    with structlog.contextvars.bound_contextvars(entry=pk):
        return _post_with_care(policy, pk)


def _post_with_care(policy: Policy, pk: int) -> Result:
    charged: list[rows.Claimed] = []
    try:
        with transaction.atomic():
            found = rows.claim_these([pk])
            waits = bool(parking.barriers(found))
            exhausted = any(it.killed and it.attempts >= policy.max_attempts for it in found)
            if found and not waits and not exhausted:
                charged = found
                _charge(policy, found[0])
                policy.seal()
    except (DatabaseError, InterfaceError):
        for entry in charged:  # a COMMIT without an answer may have happened
            _refund(entry, due_now=True)
        raise
    if not found:
        return Result()
    if waits:
        return post_these(policy, [pk])
    if exhausted:
        text = f"{rows.DIED}, at attempt {found[0].attempts}"
        refusal = RefusedError(ErrorCode.UNEXPECTED, text)
        return post_these(policy, [pk], charged=True, guilty={pk: refusal})
    return _post_charged(policy, found[0])


def _charge(policy: Policy, entry: rows.Claimed) -> None:
    delay_s = policy.delay_sec(entry.attempts + 1)
    OutboxEntry.objects.filter(pk=entry.id).charge(delay_s=delay_s, error=rows.DIED)


def _post_charged(policy: Policy, entry: rows.Claimed) -> Result:
    try:
        result = post_these(policy, [entry.id], charged=True)
    except (DatabaseError, InterfaceError, LeaseLostError) as error:
        if isinstance(error, LeaseLostError) or is_infrastructure(error):
            _refund(entry, due_now=True)
        raise
    if not (result.posted or result.duplicates or result.failures):
        _refund(entry, due_now=False)  # it waits for another entry, or for newer code
    return result


def _refund(entry: rows.Claimed, *, due_now: bool) -> None:
    """Give our own charge back: where the lease was lost the next holder may have made another.

    At this process' next run, where the database cannot be reached now.
    """
    this = OutboxEntry.objects.filter(pk=entry.id)
    charged = this.charged(entry.attempts + 1, rows.DIED)
    refund = partial(charged.refund, due_now=due_now)
    try:
        with_retries(refund)
    except (DatabaseError, InterfaceError):
        leftovers.leave(refund, rows=this)
        raise
