"""Pause and resume jobs, or ask for a run, on the record."""

from functools import partial

from django.db import transaction

from recovery import audit
from recovery.models import Job
from recovery.wakeups import enqueue

PAUSED = "job-paused"
RESUMED = "job-resumed"
RUN_REQUESTED = "job-run-requested"
STATES = {
    PAUSED: ("running", "paused"),
    RESUMED: ("paused", "running"),
    RUN_REQUESTED: ("running", "running"),
}
"""Of the job, before and after."""


def pause(name: str, *, actor: str, reason: str = "") -> bool:
    """Pause job ``name`` with its lanes: ticks, wake-ups and ``run_job`` pass them by.

    False: they were paused.
    """
    with transaction.atomic():
        changed = Job.objects.family(name).pause()
        if changed:
            _record(PAUSED, name, actor=actor, reason=reason)
    return changed


def resume(name: str, *, actor: str, reason: str = "") -> bool:
    """Resume job ``name`` with its lanes and wake it. False: none of them was paused."""
    with transaction.atomic():
        changed = Job.objects.family(name).resume()
        if changed:
            _record(RESUMED, name, actor=actor, reason=reason)
            # Whatever the flag says: it may have been set while the job was paused.
            transaction.on_commit(partial(enqueue, name), robust=True)
    return changed


def run_now(name: str, *, actor: str, reason: str = "") -> bool:
    """Ask for a run of job ``name`` at once. False: it is paused, and would be passed by."""
    with transaction.atomic():
        if Job.objects.filter(name=name, paused_at__isnull=False).exists():
            return False
        _record(RUN_REQUESTED, name, actor=actor, reason=reason)
        transaction.on_commit(partial(enqueue, name), robust=True)
    return True


def _record(action: str, name: str, *, actor: str, reason: str) -> None:
    before, after = STATES[action]
    audit.record(
        actor=actor,
        action=action,
        target_type="job",
        target_id=name,
        reason=reason,
        before={"state": before},
        after={"state": after},
    )
