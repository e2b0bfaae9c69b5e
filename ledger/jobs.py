"""The ledger's job: post what is due."""

import logging
import time

from django.conf import settings

from ledger import metrics, parking, poison, traces
from ledger.limits import policy_of
from ledger.outbox import JOB
from ledger.posting import post_due
from ledger.rows import ENTRY_DEAD
from ledger.selfcheck import ENTRIES_DIE
from recovery import garbage, registry, tracing, wakeups
from recovery.pacing import next_size
from recovery.registry import Batch, job
from recovery.runner import Run

logger = logging.getLogger(__name__)

DEATHS_BEFORE_CARE = 2
LEAST_ENTRIES, MOST_TIMES = 10, 4
"""A batch has at least so many entries, and at most so many times JOB_OUTBOX_BATCH_SIZE."""
LONGEST_BATCH_S = 1.0
"""A batch that took longer is followed by one of half as many entries."""


@job(
    JOB,
    period_setting="JOB_OUTBOX_PERIOD_SEC",
    lanes_setting="JOB_OUTBOX_DRAINS",
    limit=ENTRIES_DIE,
    audit_actions=(ENTRY_DEAD,),
)
def process_ledger_outbox(run: Run) -> Batch:
    """Post due outbox entries in batches."""
    policy = policy_of(run.actor, seal=run.renew_lease, run_id=run.run_id)
    limit = run.batch_size or settings.JOB_OUTBOX_BATCH_SIZE
    if run.deaths >= DEATHS_BEFORE_CARE and not run.counts:
        return poison.post_one_at_a_time(run, policy, limit=limit)
    started, since_ns = time.monotonic(), traces.begun_ns()
    with garbage.left_alone(), tracing.span("outbox_entry.batch") as span:
        result = post_due(policy, limit=limit)
        span.note(claimed=result.claimed, **result.counts())
        if not result.claimed:
            span.drop()
    run.batch_size = _next_size(limit, time.monotonic() - started)
    if result.claimed >= limit and not run.counts:
        _call_next_lane(run)
    traces.tell(result, since_ns=since_ns)
    for pk in list(result.suspects):
        if run.over():
            break
        alone = poison.post_with_care(policy, pk)
        traces.tell(alone, since_ns=since_ns)
        result.add(alone)
        run.progressed()
    if result.errors:
        raise result.errors[0]
    full = result.claimed >= limit and result.progressed()
    if result.briefly and not full:
        time.sleep(parking.BUSY_HEAD_LEAST_S)  # rather than until the next tick
    more = full or result.released > 0 or result.briefly or bool(result.suspects)
    return Batch({**result.counts(), **metrics.by_code(result)}, more=more)


def _next_size(size: int, took_s: float) -> int:
    least, most = LEAST_ENTRIES, MOST_TIMES * settings.JOB_OUTBOX_BATCH_SIZE
    return next_size(size, took_s, least=least, most=most, longest_s=LONGEST_BATCH_S)


def _call_next_lane(run: Run) -> None:
    """Wake the lane behind this one: there is more than a batch to do."""
    lane = registry.lane_behind(run.job)
    if lane:
        wakeups.wake(lane.name)
