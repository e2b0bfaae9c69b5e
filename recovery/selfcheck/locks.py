"""Is it locked? The lock is taken, and a run begun as the runner does: it must be refused.

All in one transaction that is rolled back: the job's row, its fence and its pause stay as they
are, and a worker that comes meanwhile is refused as by any holder.
"""

import time

from django.db import DatabaseError, InterfaceError

from recovery import leases, link, runner, wakeups
from recovery.errors import with_retries
from recovery.models import Job as JobRow
from recovery.registry import Job
from recovery.rehearsing import UnprovenError, rolled_back
from recovery.selfcheck.answers import Answer
from recovery.selfcheck.findings import Finding, Severity

RUNGS = {leases.KEY: "the Redis key", leases.ROW: "the row in recovery_job"}
TRIES, PAUSE_S = 20, 0.05
"""A worker that comes meanwhile has the Redis key until the row refuses it, within 0.3 s."""
BYPASSED = "Two runs of it may be at work at once, which rows and epochs survive: jobs pause {job}"
BYPASSED += " all the same, and compare recovery/leases.py with the release."


def is_locked(job: Job) -> Answer:
    """Answer from the refusal of a second holder, or from our own where somebody holds it."""
    try:
        refused, note = with_retries(lambda: _refusals(job))
    except leases.HeldError as held:
        return Answer(True, f"{held}: it refused us by {RUNGS[held.rung]}")
    except UnprovenError as unproven:
        raise UnprovenError(str(unproven), remedy=BYPASSED.format(job=job.name)) from unproven
    finally:
        _look_once_more(job.name)
    rungs = " and ".join(RUNGS[rung] for rung in refused)
    evidence = f"taken, and a second holder was refused by {rungs}{note}"
    return Answer(True, evidence + _degraded(), findings=_open_keys(job.name, refused))


def _refusals(job: Job) -> tuple[list[str], str]:
    """Take the lock and return which rungs refused a second holder, with what is to be added."""
    with rolled_back():
        note = _as_if_not_paused(job.name)
        first = leases.acquire(job.name)
        try:
            refused = [_refusal(job)]
            if refused == [leases.KEY]:
                first.drop_key()
                refused.append(_refusal_by_row(job))
        finally:
            first.drop_key()
    return refused, note


def _as_if_not_paused(name: str) -> str:
    """Resume the job for this transaction alone."""
    this = JobRow.objects.filter(name=name)
    if not this.exclude(paused_at=None).exists():
        return ""
    leases.lock_row(name)
    this.resume()
    return ", as it will be once it is resumed"


def _refusal(job: Job) -> str:
    """Return which rung refused a second run; raise UnprovenError where none did."""
    try:
        second = runner.begin(job)
    except leases.HeldError as held:
        return held.rung
    second.lease.drop_key()
    raise UnprovenError("a second holder was let in while the first one held the lock")


def _refusal_by_row(job: Job) -> str:
    """Return which rung refused once our Redis key is gone: the row."""
    for _ in range(TRIES):
        rung = _refusal(job)
        if rung == leases.ROW:
            break
        time.sleep(PAUSE_S)
    return rung


def _look_once_more(name: str) -> None:
    """Start the run whose wake-up came while we had the lock, as every holder does."""
    try:
        if wakeups.pending(name):
            wakeups.enqueue(name)
    except (DatabaseError, InterfaceError):
        return  # it costs a period


def _degraded() -> str:
    return "; Redis is down, so the row alone was asked" if link.is_down() else ""


def _open_keys(name: str, refused: list[str]) -> tuple[Finding, ...]:
    if not link.configured() or link.is_down() or leases.KEY in refused:
        return ()
    return (
        Finding(
            Severity.WARNING,
            "lock-key-open",
            f"Redis answers, but the key lock:job:{name} did not refuse a second holder;"
            " the row did.",
            "Does something delete the key, or does Redis evict it (CONFIG GET maxmemory-policy)?",
        ),
    )
