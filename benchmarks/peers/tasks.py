"""What a task does where each entry has one of its own."""

from collections.abc import Iterator

from django.conf import settings

from ledger.models import OutboxEntry
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


def waiting() -> Iterator[int]:
    """Return the entries that want a task."""
    return OutboxEntry.objects.pending().order_by("id").values_list("pk", flat=True).iterator()
