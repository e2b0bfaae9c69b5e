"""Something for a cluster to post."""

from decimal import Decimal
from itertools import count

from django.db import transaction

from ledger.models import OutboxEntry
from ledger.outbox import JOB, Line, publish
from recovery.models import JobRun
from tests.processes import is_stopped
from tests.waiting import eventually

QUICK = {
    "JOB_LOCK_TTL_SEC": "4",
    "SPLIT_COMPLETION_TIMEOUT_SEC": "1",
    "JOB_OUTBOX_PERIOD_SEC": "2",
}
"""Environment of a cluster whose outbox recovers within seconds."""

_numbers = count(1)


def publish_one() -> OutboxEntry:
    """Publish the receipt of a board and commit."""
    code = f"FAULT-{next(_numbers)}"
    quantity = Decimal(10)
    with transaction.atomic():
        return publish(
            event_key=f"lot:{code}:received",
            event_type="lot-received",
            aggregate=f"lot:{code}",
            lines=[Line("stock:OAK", quantity, "m2"), Line("external:receipts", -quantity, "m2")],
        )


def is_posted(entry: OutboxEntry) -> bool:
    """Tell whether the entry is posted."""
    return OutboxEntry.objects.get(pk=entry.pk).status == "posted"


def posted(entry: OutboxEntry) -> OutboxEntry:
    """Return the entry once it is posted."""
    eventually(lambda: is_posted(entry))
    entry.refresh_from_db()
    return entry


def running() -> JobRun | None:
    """Return the run of the outbox that is under way."""
    return JobRun.objects.filter(job_id=JOB, status="running").order_by("id").last()


def held(job: str = JOB) -> JobRun | None:
    """Return the run that was stopped at a fault point in the middle of its work."""
    runs = JobRun.objects.filter(job_id=job, status="running")
    return next((run for run in runs if is_stopped(run.pid)), None)
