"""Keep the order within an aggregate: find what must wait, park it, release it."""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import Min

from ledger.models import EntryStatus, OutboxEntry
from ledger.rows import Claimed
from recovery.clock import db_now

PARK_ALL_FROM = 50
"""From so many claimed followers of one head on, all of its followers are parked at once."""


def barriers(entries: Sequence[Claimed]) -> dict[str, int]:
    """Return, by aggregate, the first entry outside the batch that holds later ones back.

    A plain read: an entry that another drain is just posting still reads pending, so its
    successors wait a moment.
    """
    claimed = {entry.id for entry in entries}
    found: dict[str, int] = {}
    several = [name for name, n in Counter(e.aggregate for e in entries).items() if n > 1]
    for aggregate, status, head in _heads({entry.aggregate for entry in entries}):
        if status == EntryStatus.DEAD or head not in claimed:
            found[aggregate] = min(head, found.get(aggregate, head))
    unblocked = [name for name in several if name not in found]
    if unblocked:
        found |= _gaps(unblocked, claimed)
    return found


def _heads(aggregates: Collection[str]) -> list[tuple[str, str, int]]:
    """Return the first pending and the first dead entry of each aggregate: two index seeks each."""
    rows = (
        OutboxEntry.objects.blocking(aggregates)
        .order_by()
        .values("aggregate", "status")
        .annotate(head=Min("id"))
    )
    return list(rows.values_list("aggregate", "status", "head"))


def _gaps(aggregates: Sequence[str], claimed: Collection[int]) -> dict[str, int]:
    """Return the first pending entry between claimed ones that somebody else holds."""
    rows = (
        OutboxEntry.objects.pending()
        .filter(aggregate__in=aggregates, pk__lt=max(claimed))
        .exclude(pk__in=claimed)
        .order_by()
        .values("aggregate")
        .annotate(gap=Min("id"))
    )
    return dict(rows.values_list("aggregate", "gap"))


def park_behind(head: int, waiting: Sequence[int], *, cap_s: float) -> int:
    """Park these claimed followers of ``head`` until its time; return how many."""
    if len(waiting) >= PARK_ALL_FROM:
        return park_all_behind(head, cap_s=cap_s)
    with transaction.atomic():
        aggregate_until = _locked_head(head, cap_s)
        if aggregate_until is None:
            return 0
        _, until = aggregate_until
        return (
            OutboxEntry.objects.pending()
            .filter(pk__in=waiting, next_attempt_at__lt=until)
            .park(until)
        )


def park_all_behind(head: int, *, cap_s: float) -> int:
    """Park every pending follower of ``head`` until its time; return how many."""
    with transaction.atomic():
        aggregate_until = _locked_head(head, cap_s)
        if aggregate_until is None:
            return 0
        aggregate, until = aggregate_until
        return (
            OutboxEntry.objects.pending()
            .filter(aggregate=aggregate, pk__gt=head, next_attempt_at__lt=until)
            .park(until)
        )


def _locked_head(head: int, cap_s: float) -> tuple[str, datetime] | None:
    """Return the head's aggregate and how long its followers wait; None: it is being worked.

    Under the head's row lock nobody can post, redrive or discard it meanwhile, so no
    follower is parked behind a head that is gone.
    """
    skip_locked = connection.features.has_select_for_update_skip_locked
    entry = OutboxEntry.objects.select_for_update(skip_locked=skip_locked).filter(pk=head).first()
    if entry is None or entry.status not in (EntryStatus.PENDING, EntryStatus.DEAD):
        return None
    now = db_now()
    if entry.status == EntryStatus.DEAD:
        return entry.aggregate, now + timedelta(seconds=cap_s)
    return (entry.aggregate, entry.next_attempt_at) if entry.next_attempt_at > now else None


def release(aggregates: Collection[str]) -> int:
    """Let the parked entries of ``aggregates`` be due now; return how many.

    For the aggregates of entries that were posted, redriven or discarded.
    """
    now = db_now()
    return (
        OutboxEntry.objects.pending()
        .filter(aggregate__in=aggregates, next_attempt_at__gt=now)
        .park(now)
    )
