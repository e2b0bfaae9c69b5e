"""What is counted and sampled of split orders."""

from django.conf import settings
from prometheus_client import Counter, Histogram

from recovery.metrics import GaugeValues, gauge
from splits.models import OrderStatus, SplitOrder

RETRY_ATTEMPTS = Counter("finalize_retry_attempts", "Finalize attempts after an order's first.")
STUCK_DETECTED = Counter("job_stuck_detected", "Stuck finalizations found, once an epoch.")
RECOVERIES = Counter("finalize_recoveries", "Stuck finalizations reset.")
DURATION = Histogram("finalize_duration_seconds", "Duration of attempts that finalized.")


def finalize_retried() -> None:
    """Count one attempt after an order's first."""
    if settings.METRICS_ENABLED:
        RETRY_ATTEMPTS.inc()


def stuck_detected() -> None:
    """Count one epoch of an order that was found stuck."""
    if settings.METRICS_ENABLED:
        STUCK_DETECTED.inc()


def recovered() -> None:
    """Count one reset."""
    if settings.METRICS_ENABLED:
        RECOVERIES.inc()


def finalized(duration_s: float) -> None:
    """Observe the duration of an attempt that finalized its order."""
    if settings.METRICS_ENABLED:
        DURATION.observe(duration_s)


@gauge("split_orders")
def split_orders() -> GaugeValues:
    """Split orders that are being finalized, hang, or wait for an operator."""
    orders, threshold_s = SplitOrder.objects.all(), settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC
    states = {
        "in_progress": orders.in_progress(),
        "stuck": orders.stuck(threshold_s),
        "failed": orders.filter(status=OrderStatus.FAILED),
        "quarantined": orders.filter(status=OrderStatus.QUARANTINED),
    }
    return [({"state": state}, float(found.count())) for state, found in states.items()]


@gauge("split_orders_overdue")
def split_orders_overdue() -> GaugeValues:
    """Split orders that nobody claims though they were due before the stuck threshold."""
    found = SplitOrder.objects.overdue(settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC)
    return [({}, float(found.count()))]
