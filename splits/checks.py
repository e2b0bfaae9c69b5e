"""System checks of the settings that only split orders have."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004


@register()
def check_finalization(
    app_configs: Sequence[AppConfig] | None, **_kwargs: Any
) -> list[CheckMessage]:
    """Check the endpoint's deadline, the stuck threshold and the alarm against each other."""
    return [*_slow_endpoint(), *_healthy_orders(), *_endless_recoveries()]


def _slow_endpoint() -> Iterator[CheckMessage]:
    deadline, ttl = settings.SPLIT_COMPLETION_TIMEOUT_SEC, settings.JOB_LOCK_TTL_SEC
    if deadline >= ttl:
        yield Error(
            f"SPLIT_COMPLETION_TIMEOUT_SEC={deadline:g} is not shorter than"
            f" JOB_LOCK_TTL_SEC={ttl}: a slow endpoint would cost the job its lease.",
            hint="Lower the time-out or raise JOB_LOCK_TTL_SEC.",
            id="recovery.E004",
        )


def _healthy_orders() -> Iterator[CheckMessage]:
    threshold = settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC
    longest = settings.SPLIT_COMPLETION_TIMEOUT_SEC + 2 * settings.JOB_LOCK_TTL_SEC
    if threshold <= longest:
        yield Warning(
            f"JOB_FINALIZE_STUCK_THRESHOLD_SEC={threshold} is within the longest step of a"
            " finalization: healthy orders would be reset.",
            hint=f"Set it above {longest:g}: SPLIT_COMPLETION_TIMEOUT_SEC + 2 * JOB_LOCK_TTL_SEC.",
            id="recovery.W001",
        )


def _endless_recoveries() -> Iterator[CheckMessage]:
    window, allowed = settings.JOB_STUCK_ALERT_WINDOW_SEC, settings.JOB_STUCK_ALERT_THRESHOLD
    threshold = settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC
    if window <= allowed * threshold:
        yield Warning(
            f"JOB_STUCK_ALERT_WINDOW_SEC={window} is over before an order can hang"
            f" {allowed + 1} times (JOB_STUCK_ALERT_THRESHOLD={allowed}, each time for"
            f" JOB_FINALIZE_STUCK_THRESHOLD_SEC={threshold}): none is ever quarantined.",
            hint=f"Set JOB_STUCK_ALERT_WINDOW_SEC well above {allowed * threshold}.",
            id="recovery.W015",
        )
