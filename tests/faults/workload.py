"""Orders on their way from a cut plan to the ledger, and all that must have become of them."""

from collections.abc import Mapping
from contextlib import closing

from ledger.models import EntryStatus, OutboxEntry
from ledger.outbox import JOB as OUTBOX
from recovery.models import AuditRecord, Job, JobRun
from recovery.runner import Outcome, run_job
from splits.lifecycle import FINALIZE_JOB
from splits.models import OrderStatus, SplitOrder
from tests.faults.checker import connect, violations
from tests.faults.installation import csv_text, plan_rows
from tests.faults.ledger import QUICK
from tests.processes import database_url
from tests.splits.plans import imported
from tests.waiting import eventually

SHORT = {
    "JOB_LOCK_TTL_SEC": "1",
    "REDIS_TIMEOUT_SEC": "0.5",  # both must be shorter than the life of the lock
    "SPLIT_COMPLETION_TIMEOUT_SEC": "0.5",
    "JOB_BACKOFF_BASE_SEC": "0.001",
}
"""Environment of a run whose lock soon expires and whose failures are soon due again."""

BRISK = QUICK | {"JOB_FINALIZE_PERIOD_SEC": "2", "JOB_STUCK_PERIOD_SEC": "1"}
"""Environment of a cluster that takes over within seconds."""
RESCUING = BRISK | {"JOB_FINALIZE_STUCK_THRESHOLD_SEC": "8"}


def run_now(job: str) -> Outcome:
    """Make a guarded run in this process as soon as nobody else holds the lock of ``job``."""

    def outcome() -> Outcome | None:
        found = run_job(job)
        return found if found.status != "skipped" else None

    done = eventually(outcome)
    assert done is not None
    return done


class Workload:
    """Orders imported from published cut plans, ready to be finalized."""

    def __init__(self, count: int) -> None:
        """Import ``count`` of them."""
        self.rows = plan_rows(count)
        self.numbers = list(dict.fromkeys(row["order_number"] for row in self.rows))
        done, faults = imported(csv_text(self.rows).encode(), finalize=True)
        assert (done.imported, faults) == (count, [])

    def carry_on(self) -> None:
        """Finalize and post what is due."""
        for job in (FINALIZE_JOB, OUTBOX):
            assert run_now(job).status == "ok"

    def assert_settled(
        self, *, audited: Mapping[str, str] | None = None, charged: Mapping[str, int] | None = None
    ) -> None:
        """Assert the whole final state.

        ``audited``: the action of an order's one record, by number; but for those of
        the plans that operators made there are no others.
        ``charged``: the attempts of outbox entries, by key; the others have none.
        """
        with closing(connect(database_url())) as link:
            assert violations(link, self.rows) == []
        of_rows = AuditRecord.objects.exclude(target_type="plan")
        records = of_rows.values_list("target_id", "action")
        assert sorted(records) == sorted((audited or {}).items())
        attempts = OutboxEntry.objects.exclude(attempts=0).values_list("event_key", "attempts")
        assert dict(attempts) == (charged or {})
        assert not SplitOrder.objects.exclude(last_finalize_error="").exists()
        assert not JobRun.objects.filter(status="running").exists()
        assert not Job.objects.exclude(lease_owner="").exists()

    def is_posted(self) -> bool:
        """Tell whether every order is finalized and posted."""
        finalized = SplitOrder.objects.filter(status=OrderStatus.FINALIZED).count()
        posted = OutboxEntry.objects.filter(status=EntryStatus.POSTED).count()
        return (finalized, posted) == (len(self.numbers), 2 * len(self.numbers))

    def attempts(self) -> dict[str, int]:
        """Return how many attempts each order has had."""
        return dict(SplitOrder.objects.values_list("number", "finalize_attempts"))
