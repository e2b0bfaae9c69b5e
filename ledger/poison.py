"""After runs that died: work one entry at a time, its attempt counted before the work."""

import logging

from django.db import DatabaseError, InterfaceError, transaction

from ledger import metrics, rows
from ledger.models import ErrorCode, OutboxEntry
from ledger.posting import Policy, Result, post_these
from recovery.clock import db_now
from recovery.errors import is_infrastructure
from recovery.registry import Batch
from recovery.runner import Run

logger = logging.getLogger(__name__)

DIED = "the worker died while it worked this entry"


def post_one_at_a_time(run: Run, policy: Policy, *, limit: int) -> Batch:
    """Post up to ``limit`` due entries one by one; an entry that kills workers ends in the DLQ.

    The attempt is committed before the work, and given back after an infrastructure error.
    """
    logger.warning("entries_one_at_a_time", extra={"deaths": run.deaths})
    total = Result()
    ids = list(OutboxEntry.objects.due().order_by("next_attempt_at", "id").values_list("pk")[:limit])
    for (pk,) in ids:
        if run.over():
            break
        total.add(_post_with_care(policy, pk))
        run.progressed()
    metrics.count(total)
    return Batch(total.counts(), more=total.claimed > 0)


def _post_with_care(policy: Policy, pk: int) -> Result:
    if not _charge(policy, pk):
        return Result()
    try:
        result = post_these(policy, [pk], charged=True)
    except (DatabaseError, InterfaceError) as error:
        if is_infrastructure(error):
            OutboxEntry.objects.filter(pk=pk).refund()
        raise
    if not (result.posted or result.duplicates or result.failures):
        OutboxEntry.objects.filter(pk=pk).refund()  # it waits for another entry
    return result


def _charge(policy: Policy, pk: int) -> bool:
    """Count an attempt of the entry before it is made; False: it is not to be worked."""
    with transaction.atomic():
        found = rows.claim_these([pk])
        if not found:
            return False
        (entry,) = found
        if entry.attempts >= policy.max_attempts:
            _bury(policy, entry)
            return False
        delay_s = policy.delay_sec(entry.attempts + 1)
        OutboxEntry.objects.filter(pk=pk).charge(delay_s=delay_s, error=DIED)
        policy.seal()
    return True


def _bury(policy: Policy, entry: rows.Claimed) -> None:
    text = f"{DIED}, at each of {entry.attempts} attempts"
    charge = rows.Charge(entry, entry.attempts, db_now(), ErrorCode.UNEXPECTED, text, dead=True)
    rows.store_charges([charge], actor=policy.actor)
    policy.seal()
