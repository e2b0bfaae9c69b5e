"""Keep the order within an aggregate: find what must wait, park it, release it.

Entries are locked first, by SKIP LOCKED, and then changed by their ids alone: a drain that hangs
with some of them locked holds back nobody else.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import connection, transaction

from ledger import rows
from ledger.models import EntryStatus, OutboxEntry
from ledger.rows import Claimed
from recovery.clock import db_now

PARK_ALL_FROM = 50
"""From so many claimed followers of one head on, all of its followers are parked at once."""
AT_ONCE = 10_000
"""So many entries are parked or released in one statement: a hundred thousand take several."""
BUSY_HEAD_DELAY_S = 5.0
"""How long followers wait, at most, for a head that another transaction has locked."""
BUSY_HEAD_LEAST_S = 0.05
BRIEFLY_S = 0.5
BUSY_HEAD_SHARE = 2
"""They wait for this part of the time that the head is late: a drain at work posts it in no time,
and those behind a drain that hangs must not fill every batch."""


def barriers(entries: Sequence[Claimed]) -> dict[str, int]:
    """Return, by aggregate, the first entry outside the batch that holds later ones back.

    A plain read: an entry that another drain is just posting still reads pending, so its
    successors wait a moment. Reads no more rows of an aggregate than are claimed of it.
    """
    by_aggregate: defaultdict[str, list[int]] = defaultdict(list)
    for entry in entries:
        by_aggregate[entry.aggregate].append(entry.id)
    by_count: defaultdict[int, list[int]] = defaultdict(list)
    for ids in by_aggregate.values():
        by_count[len(ids)].append(ids[0])
    found: dict[str, int] = {}
    for count, samples in by_count.items():
        for aggregate, head, nth, dead in rows.standings(samples, count):
            claimed = by_aggregate[aggregate]
            if dead is None and nth == max(claimed):
                continue  # the usual case
            barrier = _barrier(aggregate, claimed, head, nth, dead)
            if barrier is not None:
                found[aggregate] = barrier
    return found


def _barrier(
    aggregate: str, claimed: Sequence[int], head: int | None, nth: int | None, dead: int | None
) -> int | None:
    """Return the first entry not ``claimed`` that is dead, or pending and before a claimed one.

    Of the aggregate's pending entries ``head`` is the first and ``nth`` that of the number
    claimed: only where this is the last claimed one nobody else stands in between.
    """
    gap = None
    if nth != max(claimed):
        gap = head if head not in claimed else _gap(aggregate, claimed)
    return min((pk for pk in (gap, dead) if pk is not None), default=None)


def _gap(aggregate: str, claimed: Sequence[int]) -> int | None:
    """Return the first pending entry that is not claimed, among as many as are claimed."""
    pending = OutboxEntry.objects.pending().filter(aggregate=aggregate).order_by("id")
    ids = pending.values_list("pk", flat=True)[: len(claimed)]
    return next((pk for pk in ids if pk not in claimed), None)


class Parked(NamedTuple):
    """How many entries were parked, and whether some of them for a moment only."""

    entries: int
    briefly: bool
    """Some wait for a head that another drain is just posting."""


def park_behind(behind: Mapping[int, Sequence[int]], *, cap_s: float) -> Parked:
    """Park claimed entries, given by the head they wait for, until its time.

    Where a head has many, all of its followers are parked, claimed or not.
    """
    if not behind:
        return Parked(0, briefly=False)
    crowded = [head for head, waiting in behind.items() if len(waiting) >= PARK_ALL_FROM]
    whole = {head: park_all_behind(head, cap_s=cap_s) for head in crowded}
    parked = sum(whole.values())
    with transaction.atomic():
        now = db_now()
        heads = [head for head in behind if not whole.get(head)]
        locked = _locked(heads)
        untils = {it.pk: _until(it, now, cap_s) for it in locked if it.holds_back()}
        passing = _passing(set(heads) - {it.pk for it in locked}, now)
        together: defaultdict[datetime, list[int]] = defaultdict(list)
        for head, until in (untils | passing).items():
            together[until] += behind[head]
        for until, waiting in together.items():
            parked += OutboxEntry.objects.park(rows.lock_pending(waiting), until)
    soon = now + timedelta(seconds=BRIEFLY_S)
    return Parked(parked, briefly=any(until <= soon for until in passing.values()))


def park_all_behind(head: int, *, cap_s: float) -> int:
    """Park every pending follower of ``head`` until its time; return how many.

    Some at a time, each time under the head's lock; none where another transaction has it.
    """
    parked, after, last = 0, head, False
    while not last:
        with transaction.atomic():
            locked = _locked([head])
            if not locked or not locked[0].holds_back():
                break
            ids = rows.lock_followers(locked[0].aggregate, after=after, limit=AT_ONCE)
            parked += OutboxEntry.objects.park(ids, _until(locked[0], db_now(), cap_s))
            last = len(ids) < AT_ONCE
            after = ids[-1] if ids else after
    return parked


def _passing(busy: Collection[int], now: datetime) -> dict[int, datetime]:
    """Return when the followers of heads that other transactions have locked may be tried.

    They step aside for a moment: if a drain hangs, those behind it would fill every batch.
    """
    heads = OutboxEntry.objects.blocking().filter(pk__in=busy)
    return {
        pk: now + timedelta(seconds=_busy_delay_s(now, due_at))
        for pk, due_at in heads.values_list("pk", "next_attempt_at")
    }


def _busy_delay_s(now: datetime, due_at: datetime) -> float:
    late_s = (now - due_at).total_seconds()
    return min(BUSY_HEAD_DELAY_S, max(BUSY_HEAD_LEAST_S, late_s / BUSY_HEAD_SHARE))


def _locked(heads: Collection[int]) -> list[OutboxEntry]:
    """Lock and return those of ``heads`` that no other transaction has locked.

    Under the head's row lock nobody can post, redrive or discard it meanwhile, so no
    follower is parked behind a head that is gone.
    """
    skip_locked = connection.features.has_select_for_update_skip_locked
    entries = OutboxEntry.objects.select_for_update(skip_locked=skip_locked)
    return list(entries.filter(pk__in=heads).order_by("id").defer("payload", "last_error"))


def _until(head: OutboxEntry, now: datetime, cap_s: float) -> datetime:
    """Return when the followers of a locked head may be tried.

    A pending head's own time, even where it has come: of the same time, the head comes first.
    """
    dead = head.status == EntryStatus.DEAD
    return now + timedelta(seconds=cap_s) if dead else head.next_attempt_at


def release(aggregates: Collection[str]) -> int:
    """Let the parked entries of ``aggregates`` be due now; return how many.

    For the aggregates of entries that were posted, redriven or discarded.
    """
    released = 0
    while True:
        with transaction.atomic():
            ids = rows.lock_parked(aggregates, limit=AT_ONCE)
            released += OutboxEntry.objects.unpark(ids)
        if len(ids) < AT_ONCE:
            return released


def release_some(aggregate: str) -> int:
    """Let parked entries of an aggregate be due, in the caller's transaction; return how many.

    Under the lock of the aggregate's head: up to as many as one statement takes.
    """
    ids = rows.lock_parked([aggregate], limit=AT_ONCE)
    return OutboxEntry.objects.unpark(ids) if ids else 0
