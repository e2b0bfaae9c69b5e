"""The engine's own jobs."""

import time
from collections import Counter

from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction

from recovery import carrying, history, metrics, plans, retention
from recovery.carrying import Carrier, Step
from recovery.clock import db_now
from recovery.models import Plan
from recovery.registry import Batch, job
from recovery.runner import Run
from recovery.selfcheck.halting import PLANS_HALT


@job("metricsCollect", period_setting="JOB_METRICS_PERIOD_SEC")
def metrics_collect(run: Run) -> Batch:
    """Sample business and system gauges."""
    if not settings.METRICS_ENABLED:
        return Batch()
    samples = metrics.collect()
    with transaction.atomic():
        stored = metrics.store(samples)
        history.keep(samples)
        run.renew_lease()
    return Batch({"samples": stored})


@job("auditArchive", period_setting="JOB_ARCHIVE_PERIOD_SEC")
def audit_archive(run: Run) -> Batch:
    """Delete what is past its retention."""
    deleted: Counter[str] = Counter()
    is_over = _retain(run, deleted)
    return Batch(+deleted, more=is_over)


def _retain(run: Run, deleted: Counter[str]) -> bool:
    """Delete what is past its retention, and count it; tell whether the run is over."""
    now = db_now()
    for rule in retention.all_rules():
        for count in rule.sweep(now, run_id=run.run_id, seal=run.renew_lease):
            deleted[f"{rule.name}_deleted"] += count
            run.progressed()
            if run.over():
                return True
    return False


SLICE_S = 2.0
"""So long one plan is carried before it is another one's turn."""
WATCH_S = 1.0
"""So long a plan's canary is watched before the next tick does."""
WATCH_EVERY_S = 0.05


@job(
    plans.JOB,
    period_setting="JOB_PLANS_PERIOD_SEC",
    limit=PLANS_HALT,
    audit_actions=(plans.HALTED, plans.FINISHED),
)
def run_recovery_plans(run: Run) -> Batch:
    """Carry operators' plans on, each for a while."""
    counts: Counter[str] = Counter()
    more, troubles = False, []
    for plan_id in Plan.objects.running().order_by("id").values_list("pk", flat=True):
        if run.over():
            return Batch(counts, more=True)
        try:
            more |= _carry_one(plan_id, run, counts)
        except (DatabaseError, InterfaceError) as error:
            # A carrier that hangs in a transaction holds this plan's rows: the others go on.
            troubles.append(error)
    if troubles:
        raise troubles[0]
    return Batch(counts, more=more)


def _carry_one(plan_id: int, run: Run, counts: Counter[str]) -> bool:
    carrier = carrying.take(plan_id, seal=run.renew_lease, run_id=run.run_id)
    if carrier is None:
        return False
    try:
        return _carry(carrier, run)
    finally:
        counts.update(carrier.counts)
        run.progressed()


def _carry(carrier: Carrier, run: Run) -> bool:
    """Carry a plan for a while; tell whether there is more to do at once."""
    until, moved, step = time.monotonic() + SLICE_S, time.monotonic(), Step.WORKED
    try:
        while step is not Step.ENDED and not run.over():
            now = time.monotonic()
            if now > until or now - moved > WATCH_S or now + carrier.wait_s() > until:
                break
            time.sleep(carrier.wait_s() if step is Step.WORKED else WATCH_EVERY_S)
            step = carrier.step()
            moved = time.monotonic() if step is Step.WORKED else moved
    finally:
        carrier.let_go()
    return step is Step.WORKED and carrier.wait_s() < SLICE_S
