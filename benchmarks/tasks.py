"""What a django-q2 task does where each entry has a task of its own."""

from django.conf import settings

from ledger.posting import Policy, post_these
from recovery.backoff import delay_sec


def policy() -> Policy:
    """Return the limits of a drain without a lease."""
    return Policy(
        max_attempts=settings.JOB_OUTBOX_MAX_ATTEMPTS,
        delay_sec=delay_sec,
        cap_s=settings.JOB_BACKOFF_CAP_SEC,
        unknown_version_delay_s=settings.JOB_OUTBOX_UNKNOWN_VERSION_DELAY_SEC,
        actor="system:benchmark",
    )


def post_one(entry: int) -> None:
    """Post one entry."""
    post_these(policy(), [entry])
