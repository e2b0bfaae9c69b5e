"""The jobs of split orders."""

import time
from collections import Counter
from itertools import islice

from django.conf import settings
from django.db import transaction

from recovery.pacing import next_size
from recovery.registry import Batch, job
from recovery.runner import Run
from splits import audit, convoy, stuck
from splits.audit import Author
from splits.convoy import Journey
from splits.finalize import Ending, finalize
from splits.models import SplitOrder
from splits.selfcheck import ORDERS_ARE_QUARANTINED, ORDERS_FAIL

ALONE = 20
"""So many orders are tried alone, step by step, in one batch."""
LOOK_AHEAD = 200
"""More than a batch: orders whose rows are locked must not hide those behind them."""
LEAST_ORDERS = 5
LONGEST_CONVOY_S = 1.0
"""A transaction that took longer is followed by one of half as many orders."""
HELD_NAMED = 5


@job(
    "finalizeRetryWorker",
    period_setting="JOB_FINALIZE_PERIOD_SEC",
    limit=ORDERS_FAIL,
    audit_actions=(audit.FAILED, audit.RETRY_LIMIT),
)
def finalize_retry_worker(run: Run) -> Batch:
    """Finalize split orders that are due, each from its first step not done."""
    return finalize_batch(Author(run.actor, run_id=run.run_id), run)


def finalize_batch(author: Author, run: Run | None = None) -> Batch:
    """Finalize due orders: those that were never tried together, the others one by one."""
    if run and run.over():
        return Batch(more=SplitOrder.objects.due().exists())
    together = convoy.may_leave(run)
    journey = _convoy(run) if together else Journey()
    counts = Counter({Ending.FINALIZED: len(journey.arrived)} if convoy.finishes() else {})
    alone: Counter[str] = Counter()
    for order_id in _to_try_alone(journey, together=together):
        if alone.total() == ALONE or (run and run.over()):
            return Batch(+(counts + alone), more=True)
        outcome = finalize(order_id, author=author, run=run)
        if outcome:  # else somebody has its row, and it may not hide those behind it
            alone[outcome.ending] += 1
    return Batch(+(counts + alone), more=bool(journey.arrived))


def _convoy(run: Run | None) -> Journey:
    most = settings.JOB_FINALIZE_BATCH_SIZE
    size = (run.batch_size if run else 0) or most
    started = time.monotonic()
    journey = convoy.finalize_together(size, run=run)
    if run:
        took_s = time.monotonic() - started
        run.batch_size = next_size(
            size, took_s, least=LEAST_ORDERS, most=most, longest_s=LONGEST_CONVOY_S
        )
        if journey.arrived:
            run.progressed()
    return journey


def _to_try_alone(journey: Journey, *, together: bool) -> list[int]:
    """Return the orders that the convoy left and, of the first due, those that were claimed before.

    The longest due come first: new ones must not keep those that failed once from their turn.
    """
    due = SplitOrder.objects.due().order_by("next_finalize_at", "id")
    first = list(due.values_list("pk", "finalize_epoch")[:LOOK_AHEAD])
    ours = [pk for pk, epoch in first if epoch or not together or pk in journey.left]
    return ours + [pk for pk in journey.left if pk not in ours]


@job(
    "recoverFinalizeStuck",
    period_setting="JOB_STUCK_PERIOD_SEC",
    limit=ORDERS_ARE_QUARANTINED,
    audit_actions=(audit.RECOVERED, audit.QUARANTINED),
)
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
