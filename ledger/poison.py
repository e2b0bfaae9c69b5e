"""After runs that died: work one entry at a time, its attempt counted before the work."""

import logging

from django.db import DatabaseError, InterfaceError, transaction

from ledger import metrics, parking, rows
from ledger.models import ErrorCode, OutboxEntry
from ledger.payloads import RefusedError
from ledger.posting import Policy, Result, post_these
from recovery.errors import is_infrastructure
from recovery.registry import Batch
from recovery.runner import Run

logger = logging.getLogger(__name__)


def post_one_at_a_time(run: Run, policy: Policy, *, limit: int) -> Batch:
    """Post up to ``limit`` due entries one by one; an entry that kills workers ends in the DLQ.

    The attempt is committed before the work, and given back after an infrastructure error.
    """
    logger.warning("entries_one_at_a_time", extra={"deaths": run.deaths})
    total = Result()
    due = OutboxEntry.objects.due().order_by("next_attempt_at", "id")
    for pk in list(due.values_list("pk", flat=True)[:limit]):
        if run.over():
            break
        result = post_with_care(policy, pk)
        metrics.count(result)
        total.add(result)
        run.progressed()
    return Batch(total.counts(), more=total.progressed())


def post_with_care(policy: Policy, pk: int) -> Result:
    """Post one pending entry alone, its attempt counted before the work."""
    with transaction.atomic():
        found = rows.claim_these([pk])
        waits = bool(parking.barriers(found))
        exhausted = any(entry.attempts >= policy.max_attempts for entry in found)
        if found and not waits and not exhausted:
            _charge(policy, found[0])
            policy.seal()
    if not found:
        return Result()
    if waits:
        return post_these(policy, [pk])
    if exhausted:
        text = f"{rows.DIED}, at each of {found[0].attempts} attempts"
        refusal = RefusedError(ErrorCode.UNEXPECTED, text)
        return post_these(policy, [pk], charged=True, guilty={pk: refusal})
    return _post_charged(policy, pk)


def _charge(policy: Policy, entry: rows.Claimed) -> None:
    delay_s = policy.delay_sec(entry.attempts + 1)
    OutboxEntry.objects.filter(pk=entry.id).charge(delay_s=delay_s, error=rows.DIED)


def _post_charged(policy: Policy, pk: int) -> Result:
    this = OutboxEntry.objects.filter(pk=pk)
    try:
        result = post_these(policy, [pk], charged=True)
    except (DatabaseError, InterfaceError) as error:
        if is_infrastructure(error):
            this.refund()
            OutboxEntry.objects.unpark([pk])
        raise
    if not (result.posted or result.duplicates or result.failures):
        this.refund()  # it waits for another entry, or for newer code
    return result
