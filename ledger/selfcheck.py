"""What ``manage.py selfcheck`` asks of the ledger: its limit, and what stands in the outbox."""

from collections.abc import Iterator
from datetime import timedelta

from ledger.limits import policy_of
from ledger.models import EntryStatus, OutboxEntry
from ledger.posting import post_these
from ledger.rows import ENTRY_DEAD
from recovery.clock import db_now, seconds_from_now
from recovery.models import AuditRecord
from recovery.registry import Limit
from recovery.rehearsing import Rehearsal, UnprovenError
from recovery.selfcheck import Finding, Severity, examination
from recovery.selfcheck.findings import moment

GROWTH_H = 24
LATE_S = 300
"""A drain that works posts what is due within seconds; from here on none does."""


def entries_die(rehearsal: Rehearsal) -> str:
    """Refuse an entry at its last attempt; it must be dead."""
    policy = policy_of(rehearsal.actor)
    entry = OutboxEntry.objects.create(
        event_key=rehearsal.key,
        event_type="selfcheck",
        aggregate=rehearsal.key,
        payload={},  # which cannot be read
        content_hash="",
        attempts=max(0, policy.max_attempts - 1),
        next_attempt_at=db_now() + timedelta(days=1),
    )
    post_these(policy, [entry.pk])
    entry.refresh_from_db()
    refused = f"an entry refused at attempt {entry.attempts} was {entry.status}"
    if entry.status != EntryStatus.DEAD:
        raise UnprovenError(refused)
    return refused


ENTRIES_DIE = Limit("JOB_OUTBOX_MAX_ATTEMPTS", entries_die)


@examination("dead entries")
def dead_entries() -> Iterator[Finding]:
    """Count the DLQ, and how many entries came into it within a day."""
    dead = OutboxEntry.objects.dead().count()
    if not dead:
        return
    died = AuditRecord.objects.filter(action=ENTRY_DEAD, at__gt=seconds_from_now(-GROWTH_H * 3600))
    growth = died.count()
    yield Finding(
        Severity.WARNING,
        "outbox-dead-growing" if growth else "outbox-dead",
        f"The DLQ holds {dead}; {growth} died within {GROWTH_H} h. Later entries of"
        " their boards wait behind them.",
        "Mend the cause that last_error_code names, then redrive or discard them:"
        " docs/runbook.md, Dead entries.",
    )


@examination("due entries")
def late_entries() -> Iterator[Finding]:
    """Look for entries that are due and that nobody posts."""
    late = OutboxEntry.objects.pending().filter(next_attempt_at__lt=seconds_from_now(-LATE_S))
    oldest = late.order_by("next_attempt_at", "id").first()
    if oldest:
        yield Finding(
            Severity.WARNING,
            "outbox-late",
            f"Entries are due for more than {LATE_S} s and not posted, since"
            f" {moment(oldest.next_attempt_at)}: the drain does not run, or falls behind.",
            "See docs/runbook.md, A job does not run, and The ledger falls behind.",
        )
