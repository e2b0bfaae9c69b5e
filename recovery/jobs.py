"""The engine's own jobs."""

from collections import Counter

from django.conf import settings
from django.db import transaction

from recovery import metrics, retention
from recovery.clock import db_now
from recovery.registry import Batch, job
from recovery.runner import Run


@job("metricsCollect", period_setting="JOB_METRICS_PERIOD_SEC")
def metrics_collect(run: Run) -> Batch:
    """Sample business and system gauges."""
    samples = metrics.collect() if settings.METRICS_ENABLED else []
    with transaction.atomic():
        stored = metrics.store(samples)
        run.renew_lease()
    return Batch({"samples": stored})


@job("auditArchive", period_setting="JOB_ARCHIVE_PERIOD_SEC")
def audit_archive(run: Run) -> Batch:
    """Delete what is past its retention."""
    now = db_now()
    deleted: Counter[str] = Counter()
    for rule in retention.all_rules():
        for count in rule.sweep(now, seal=run.renew_lease):
            deleted[f"{rule.name}_deleted"] += count
            run.progressed()
            if run.over():
                return Batch(deleted, more=True)
    return Batch(+deleted)
