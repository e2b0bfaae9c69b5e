"""What the ledger counts and samples."""

from collections.abc import Iterable
from datetime import UTC, datetime

from django.conf import settings
from django.db.models import Count, Min
from prometheus_client import Counter, Histogram

from ledger.models import EntryStatus, ErrorCode, OutboxEntry
from ledger.posting import Result
from recovery.clock import db_now
from recovery.metrics import GaugeValues, gauge

POSTED = Counter("outbox_posted", "Outbox entries posted.")
FAILURES = Counter("outbox_failures", "Failed attempts to post an entry, by code.", ["code"])
LATENCY = Histogram(
    "outbox_post_latency_seconds",
    "Seconds from the commit of an entry to its posting.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600),
)
NOT_POSTED = (EntryStatus.PENDING, EntryStatus.DEAD, EntryStatus.DISCARDED)

if settings.METRICS_ENABLED:  # from zero: an alert on growth must see the first one
    for error_code in ErrorCode:
        FAILURES.labels(error_code.value)


def count(result: Result) -> None:
    """Count what a batch did."""
    if not settings.METRICS_ENABLED:
        return
    POSTED.inc(len(result.posted) + len(result.duplicates))
    for refusal in result.failures.values():
        FAILURES.labels(refusal.code.value).inc()
    _observe(entry.created_at for entry in result.posted)


def _observe(moments: Iterable[datetime | str]) -> None:
    now = datetime.now(UTC)  # noqa: TID251 - a duration for a histogram, nothing is decided by it
    for moment in moments:
        made = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        LATENCY.observe(max(0.0, (now - made.replace(tzinfo=UTC)).total_seconds()))


@gauge("outbox_entries")
def outbox_entries() -> GaugeValues:
    """Outbox entries by status, posted ones left out."""
    rows = OutboxEntry.objects.filter(status__in=NOT_POSTED).order_by().values_list("status")
    found = dict(rows.annotate(n=Count("pk")))
    return [({"status": status.value}, found.get(status.value, 0)) for status in NOT_POSTED]


@gauge("outbox_oldest_pending_age_seconds", ages=True)
def outbox_oldest_pending_age_seconds() -> GaugeValues:
    """Age of the oldest entry waiting to be posted; 0 where none waits."""
    # By id, in the index alone: of a hundred thousand that wait no row is read but the first.
    first = OutboxEntry.objects.pending().aggregate(first=Min("pk"))["first"]
    oldest = OutboxEntry.objects.filter(pk=first).values_list("created_at", flat=True).first()
    age_s = (db_now() - oldest).total_seconds() if oldest else 0.0
    return [({}, max(0.0, age_s))]
