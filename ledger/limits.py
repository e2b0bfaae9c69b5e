"""The limits of a drain, read from the settings."""

from collections.abc import Callable
from uuid import UUID

from django.conf import settings

from ledger import told
from ledger.posting import Policy
from recovery.backoff import delay_sec


def policy_of(
    actor: str, *, seal: Callable[[], None] = lambda: None, run_id: UUID | None = None
) -> Policy:
    """Return the limits; ``seal`` is the last statement of each transaction."""
    return Policy(
        max_attempts=settings.JOB_OUTBOX_MAX_ATTEMPTS,
        delay_sec=delay_sec,
        cap_s=settings.JOB_BACKOFF_CAP_SEC,
        unknown_version_delay_s=settings.JOB_OUTBOX_UNKNOWN_VERSION_DELAY_SEC,
        actor=actor,
        run_id=run_id,
        seal=seal,
        committed=told.of,
    )
