"""The engine's own jobs."""

import time
from collections import Counter
from collections.abc import Iterator

from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction

from recovery import carrying, history, metrics, plans, retention
from recovery.carrying import Carrier, Step
from recovery.clock import db_now
from recovery.leases import LeaseLostError
from recovery.models import Plan
from recovery.registry import Batch, job
from recovery.runner import Run
from recovery.selfcheck.halting import PLANS_HALT
from recovery.trail import archiving, seals


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


@job("auditSeal", period_setting="JOB_SEAL_PERIOD_SEC")
def audit_seal(run: Run) -> Batch:
    """Seal the audit records that were committed since."""
    made = seals.seal_some(run.renew_lease)
    seals.tell(made)
    sealed = sum(seal.count for seal in made)
    counts = Counter(records_sealed=sealed, seals=len(made))
    return Batch(+counts, more=seals.is_full(made))


@job(
    "auditArchive",
    period_setting="JOB_ARCHIVE_PERIOD_SEC",
    audit_actions=(archiving.ARCHIVED, retention.APPLIED),
)
def audit_archive(run: Run) -> Batch:
    """Move old audit records to the archive, and delete what is past its retention.

    What goes wrong with archives keeps nothing else from its retention. A run that is over is
    followed by another one, whose end says what went wrong.
    """
    counts: Counter[str] = Counter()
    troubles: list[Exception] = []
    is_over = _is_archived(run, counts, troubles) or _retain(run, counts)
    counts["archive_troubles"] = len(troubles)
    if is_over:
        return Batch(+counts, more=True)
    if troubles:
        run.counts.update(+counts)
        raise troubles[0]
    return Batch(+counts)


def _is_archived(run: Run, counts: Counter[str], troubles: list[Exception]) -> bool:
    """Archive; True: the run is over before all of it."""
    try:
        return _is_over(run, counts, archiving.archive(run, troubles))
    except LeaseLostError:
        raise
    except Exception as error:  # noqa: BLE001 - raised at the end, by who asked
        troubles.append(error)
        return False


def _is_over(run: Run, counts: Counter[str], steps: Iterator[dict[str, int]]) -> bool:
    """Take steps and count what they did; True: the run is over before them."""
    for done in steps:
        counts.update(done)
        run.progressed()
        if run.over():
            return True
    return False


def _retain(run: Run, counts: Counter[str]) -> bool:
    """Delete what is past its retention; True: the run is over before all of it."""
    now = db_now()
    for rule in retention.all_rules():
        for count in rule.sweep(now, run_id=run.run_id, seal=run.renew_lease):
            counts[f"{rule.name}_deleted"] += count
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
