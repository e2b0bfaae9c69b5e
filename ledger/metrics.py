"""What the ledger counts and samples."""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from django.conf import settings
from django.db.models import Count, Min
from prometheus_client import Counter, Histogram

from ledger.models import EntryStatus, ErrorCode, OutboxEntry
from ledger.outbox import JOB
from ledger.posting import Result
from recovery.clock import db_now
from recovery.history import flow
from recovery.metrics import GaugeValues, gauge


class BatchHistogram(Histogram):
    """A histogram that takes many observations at the price of a few."""

    def observe_many(self, amounts: Iterable[float]) -> None:
        """Observe each amount: one increment a bucket, where ``observe`` makes two an amount.

        Over several processes an increment writes to a mapped file; 500 entries a batch felt it.
        """
        found = list(amounts)
        if not found:
            return
        self._sum.inc(sum(found))
        buckets = Tally(bisect_left(self._upper_bounds, amount) for amount in found)
        for bucket, count in buckets.items():
            self._buckets[bucket].inc(count)


POSTED = Counter("outbox_posted", "Outbox entries posted.")
FAILURES = Counter("outbox_failures", "Failed attempts to post an entry, by code.", ["code"])
LATENCY = BatchHistogram(
    "outbox_post_latency_seconds",
    "Seconds from the commit of an entry to its posting.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600),
)
FAILED_OF = "failed:{code}"
NOT_POSTED = (EntryStatus.PENDING, EntryStatus.DEAD, EntryStatus.DISCARDED)

if settings.METRICS_ENABLED:  # from zero: an alert on growth must see the first one
    for error_code in ErrorCode:
        FAILURES.labels(error_code.value)


def count(result: Result) -> None:
    """Count what a batch did."""
    if not settings.METRICS_ENABLED:
        return
    POSTED.inc(len(result.posted) + len(result.duplicates))
    for code, failed in Tally(it.code for it in result.failures.values()).items():
        FAILURES.labels(code.value).inc(failed)
    if result.at:
        LATENCY.observe_many(_ages_s(result.at, (entry.created_at for entry in result.posted)))


def _ages_s(now: datetime, moments: Iterable[str]) -> Iterator[float]:
    utc = now.replace(tzinfo=None)
    for moment in moments:
        yield max(0.0, (utc - datetime.fromisoformat(moment)).total_seconds())


@flow("outbox_posted", job=JOB)
def posted(counts: Mapping[str, int]) -> dict[str, float]:
    """Entries posted."""
    return {"": counts.get("posted", 0)}


@flow("outbox_failures", job=JOB)
def failures(counts: Mapping[str, int]) -> dict[str, float]:
    """Failed attempts to post an entry, by code."""
    return {code.value: counts.get(FAILED_OF.format(code=code.value), 0) for code in ErrorCode}


def by_code(result: Result) -> dict[str, int]:
    """Return a batch's failed attempts by code, as counts of its run."""
    codes = Tally(it.code.value for it in result.failures.values())
    return {FAILED_OF.format(code=code): n for code, n in codes.items()}


@gauge("outbox_entries")
def outbox_entries() -> GaugeValues:
    """Outbox entries by status, posted ones left out."""
    rows = OutboxEntry.objects.filter(status__in=NOT_POSTED).order_by().values_list("status")
    found = dict(rows.annotate(n=Count("pk")))
    return [({"status": status.value}, found.get(status.value, 0)) for status in NOT_POSTED]


@gauge("outbox_oldest_pending_age_seconds", ages=True)
def outbox_oldest_pending_age_seconds() -> GaugeValues:
    """Age of the oldest entry waiting to be posted; 0 where none waits."""
    oldest = OutboxEntry.objects.pending().aggregate(oldest=Min("created_at"))["oldest"]
    age_s = (db_now() - oldest).total_seconds() if oldest else 0.0
    return [({}, max(0.0, age_s))]


@gauge("outbox_oldest_due_age_seconds", ages=True)
def outbox_oldest_due_age_seconds() -> GaugeValues:
    """Seconds that the entry which is due the longest has waited for a drain; 0 where none is due.

    What waits for its next attempt, or behind another entry, is not due: it keeps no drain busy.
    """
    due = OutboxEntry.objects.pending().aggregate(due=Min("next_attempt_at"))["due"]
    late_s = (db_now() - due).total_seconds() if due else 0.0
    return [({}, max(0.0, late_s))]
