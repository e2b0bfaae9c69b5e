"""The jobs of split orders."""

from collections import Counter
from itertools import islice

from django.conf import settings
from django.db import transaction

from recovery.registry import Batch, job
from recovery.runner import Run
from splits import stuck
from splits.audit import Author
from splits.finalize import finalize
from splits.models import SplitOrder

BATCH = 20
LOOK_AHEAD = 200
"""More than a batch: orders whose rows are locked must not hide those behind them."""
HELD_NAMED = 5


@job("finalizeRetryWorker", period_setting="JOB_FINALIZE_PERIOD_SEC")
def finalize_retry_worker(run: Run) -> Batch:
    """Finalize split orders that are due, each from its first step not done."""
    due = SplitOrder.objects.due().order_by("next_finalize_at", "id")
    author = Author(run.actor, run_id=run.run_id)
    counts: Counter[str] = Counter()
    for order_id in list(due.values_list("pk", flat=True)[:LOOK_AHEAD]):
        if counts.total() == BATCH or run.over():
            return Batch(counts, more=True)
        outcome = finalize(order_id, author=author, run=run)
        if outcome:
            counts[outcome.ending] += 1
    return Batch(counts)


@job("recoverFinalizeStuck", period_setting="JOB_STUCK_PERIOD_SEC")
def recover_finalize_stuck(run: Run) -> Batch:
    """Reset finalizations that hang; report those that a live transaction holds."""
    request = stuck.Request(
        author=Author(run.actor, reason="no progress", run_id=run.run_id),
        threshold_s=settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC,
        run=run,
    )
    counts: Counter[str] = Counter()
    held = []
    for found in stuck.find(request):
        if run.over():
            return Batch(counts, more=True)
        recovery = stuck.recover(found, request)
        counts[recovery.result] += 1
        if recovery.result is stuck.Result.HELD:
            held.append(found)
        run.progressed()
    _name_holders(held, request, run)
    return Batch({key: count for key, count in counts.items() if count})


def _name_holders(held: list[stuck.Found], request: stuck.Request, run: Run) -> None:
    """Log who holds the first few orders; each look takes up to two seconds."""
    for found in islice(held, HELD_NAMED):
        if run.over():
            return
        stuck.name_holder(found, request)
        with transaction.atomic():
            run.renew_lease()
        run.progressed()
