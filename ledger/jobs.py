"""The ledger's job: post what is due."""

import logging

from django.conf import settings

from ledger import metrics, poison
from ledger.outbox import JOB
from ledger.posting import Policy, post_due
from recovery.backoff import delay_sec
from recovery.registry import Batch, job
from recovery.runner import Run

logger = logging.getLogger(__name__)

DEATHS_BEFORE_CARE = 2


@job(JOB, period_setting="JOB_OUTBOX_PERIOD_SEC")
def process_ledger_outbox(run: Run) -> Batch:
    """Post due outbox entries in batches."""
    policy = policy_of(run)
    limit = settings.JOB_OUTBOX_BATCH_SIZE
    if run.deaths >= DEATHS_BEFORE_CARE and not run.counts:
        return poison.post_one_at_a_time(run, policy, limit=limit)
    result = post_due(policy, limit=limit)
    metrics.count(result)
    for pk in list(result.suspects):
        if run.over():
            break
        alone = poison.post_with_care(policy, pk)
        metrics.count(alone)
        result.add(alone)
        run.progressed()
    if result.errors:
        raise result.errors[0]
    full = result.claimed >= limit and result.progressed()
    more = full or result.released > 0 or bool(result.suspects)
    return Batch(result.counts(), more=more)


def policy_of(run: Run) -> Policy:
    """Return the limits of a run, read from the settings."""
    return Policy(
        max_attempts=settings.JOB_OUTBOX_MAX_ATTEMPTS,
        delay_sec=delay_sec,
        cap_s=settings.JOB_BACKOFF_CAP_SEC,
        unknown_version_delay_s=settings.JOB_OUTBOX_UNKNOWN_VERSION_DELAY_SEC,
        actor=run.actor,
        seal=run.renew_lease,
    )
