"""The engine's own jobs."""

from datetime import timedelta

from django.conf import settings
from django.db import transaction

from recovery import metrics
from recovery.clock import db_now
from recovery.models import JobRun
from recovery.registry import Batch, job
from recovery.runner import Run

PRUNED_AT_ONCE = 5_000


@job("metricsCollect", period_setting="JOB_METRICS_PERIOD_SEC")
def metrics_collect(run: Run) -> Batch:
    """Sample business and system gauges; drop runs past their retention."""
    samples = metrics.collect() if settings.METRICS_ENABLED else []
    oldest_kept = db_now() - timedelta(days=settings.JOB_RUN_RETENTION_DAYS)
    with transaction.atomic():
        stored = metrics.store(samples)
        old = JobRun.objects.older_than(oldest_kept).order_by("started_at")
        ids = list(old.values_list("pk", flat=True)[:PRUNED_AT_ONCE])
        pruned, _ = JobRun.objects.filter(pk__in=ids).delete() if ids else (0, {})
        run.renew_lease()
    return Batch({"samples": stored, "runs_pruned": pruned}, more=pruned == PRUNED_AT_ONCE)
