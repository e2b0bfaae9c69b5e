"""What is counted and sampled: counters here, gauges as functions in ``<app>/metrics.py``."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from django.conf import settings
from django.db import connection, transaction
from prometheus_client import Counter, Histogram

from recovery import link
from recovery.clock import db_now
from recovery.models import Sample

JOB_RUNS = Counter("job_runs", "Runs of a job.", ["job"])
JOB_FAILURES = Counter("job_failures", "Failed runs of a job; those that died too.", ["job"])
JOB_SKIPPED = Counter("job_skipped", "Runs that did not take place, by reason.", ["job", "reason"])
JOB_DURATION = Histogram("job_duration_seconds", "Duration of a job's runs.", ["job"])

SKIP_REASONS = ("locked", "no_lane", "no_lock", "paused")

GaugeValues = Iterable[tuple[Mapping[str, str], float]]


def job_ran(job: str, *, duration_s: float, failed: bool) -> None:
    """Count one run of ``job``."""
    if not settings.METRICS_ENABLED:
        return
    JOB_RUNS.labels(job).inc()
    JOB_DURATION.labels(job).observe(duration_s)
    if failed:
        JOB_FAILURES.labels(job).inc()


def jobs_died(job: str, count: int) -> None:
    """Count runs of ``job`` that were found dead: as failed; how long they took nobody knows."""
    if settings.METRICS_ENABLED and count:
        JOB_RUNS.labels(job).inc(count)
        JOB_FAILURES.labels(job).inc(count)


def job_skipped(job: str, reason: str) -> None:
    """Count one run of ``job`` that did not take place."""
    if settings.METRICS_ENABLED:
        JOB_SKIPPED.labels(job, reason).inc()


def announce(jobs: Iterable[str]) -> None:
    """Export the counters of ``jobs`` from zero: an alert on growth must see the first failure."""
    for job in jobs:
        JOB_RUNS.labels(job)
        JOB_FAILURES.labels(job)
        JOB_DURATION.labels(job)
        for reason in SKIP_REASONS:
            JOB_SKIPPED.labels(job, reason)


@dataclass(frozen=True)
class Gauge:
    """A sampled gauge: its values by label set, read from the database."""

    name: str
    summary: str
    values: Callable[[], GaugeValues]
    ages: bool = False
    """Its values are ages: they grow with the age of their sample, but for those that are 0."""


_gauges: dict[str, Gauge] = {}


def gauge(
    name: str, *, ages: bool = False
) -> Callable[[Callable[[], GaugeValues]], Callable[[], GaugeValues]]:
    """Register the decorated function as the values of gauge ``name``; see ``Gauge.ages``."""

    def register(values: Callable[[], GaugeValues]) -> Callable[[], GaugeValues]:
        summary = (values.__doc__ or "").strip().partition("\n")[0]
        _gauges[name] = Gauge(name, summary, values, ages)
        return values

    return register


def all_gauges() -> list[Gauge]:
    """Return every registered gauge by name."""
    return [_gauges[name] for name in sorted(_gauges)]


def collect() -> list[Sample]:
    """Return a sample of every gauge, not yet saved."""
    return [
        Sample(name=gauge.name, labels=_label_text(labels), value=value)
        for gauge in all_gauges()
        for labels, value in gauge.values()
    ]


def _label_text(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), sort_keys=True, ensure_ascii=False) if labels else ""


def store(samples: Iterable[Sample]) -> int:
    """Replace the stored samples by ``samples``, in the caller's transaction; return how many."""
    fresh = {(sample.name, sample.labels): sample for sample in samples}
    now = db_now()
    for sample in fresh.values():
        sample.at = now
    with transaction.atomic():
        stale = [row.pk for row in Sample.objects.all() if (row.name, row.labels) not in fresh]
        Sample.objects.filter(pk__in=stale).delete()
        Sample.objects.bulk_create(
            fresh.values(),
            update_conflicts=True,
            update_fields=["value", "at"],
            unique_fields=_conflict_fields(),
        )
    return len(fresh)


def _conflict_fields() -> list[str] | None:
    if connection.features.supports_update_conflicts_with_target:
        return ["name", "labels"]
    return None


@gauge("job_lock_degraded")
def job_lock_degraded() -> GaugeValues:
    """1 while jobs are locked by the database alone though Redis is configured."""
    return [({}, float(link.is_down()))]
