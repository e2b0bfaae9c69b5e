"""What must hold once several clusters have worked orders, asked of the test's database."""

from collections import Counter
from itertools import pairwise

from ledger.models import OutboxEntry, Transaction
from recovery import registry
from recovery.models import JobRun
from splits.models import FinalizeStep, OrderStatus, SplitOrder, StepName


def all_done(count: int) -> bool:
    """Tell whether ``count`` orders are finalized and nothing waits to be posted."""
    finalized = SplitOrder.objects.filter(status=OrderStatus.FINALIZED).count()
    return finalized == count and not OutboxEntry.objects.exclude(status="posted").exists()


def each_was_worked_once(count: int) -> None:
    """Assert that ``count`` orders were finalized and posted, once and at the first attempt."""
    orders = SplitOrder.objects.values_list("number", "finalize_epoch", "finalize_attempts")
    assert len(orders) == count
    assert {(epoch, attempts) for _, epoch, attempts in orders} == {(1, 1)}
    keys = Counter(Transaction.objects.values_list("event_key", flat=True))
    assert set(keys.values()) == {1}
    assert all(f"split-order:{number}:finalized" in keys for number, _, _ in orders)
    assert FinalizeStep.objects.count() == count * len(StepName)
    assert not OutboxEntry.objects.exclude(attempts=0).exists()


def no_runs_overlap() -> None:
    """Assert that of each job a run began only when the one before it had ended."""
    for job in registry.all_jobs():
        runs = JobRun.objects.filter(job_id=job.name).order_by("fence")
        assert len({run.fence for run in runs}) == len(runs)
        for earlier, later in pairwise(runs):
            assert earlier.finished_at is not None
            assert earlier.finished_at <= later.started_at, (job.name, earlier, later)
