"""After a restore: fence off the finalizers that hold a claim of before it."""

from dataclasses import dataclass, field

from django.db import connection, transaction
from django.db.models import Max, Min

from recovery import audit, restoring
from recovery.errors import with_retries
from splits.audit import Author
from splits.holders import HOLDERS_CHANGE, Holder, find_holder
from splits.models import SplitOrder

AT_ONCE = 500
TABLE = SplitOrder._meta.db_table


@dataclass
class Raised:
    """How many orders have a new epoch, and whose row somebody else has locked."""

    count: int = 0
    held: dict[str, Holder] = field(default_factory=dict)


def raise_epochs(to: int, *, author: Author) -> Raised:
    """Raise the epoch of every unfinished order to ``to`` at least, each transaction on the record.

    An order in progress stays so: its finalizer is fenced off, and recoverFinalizeStuck resets it
    with proof and record as any other. Hundreds a transaction; rows that a transaction holds are
    skipped, and tried once more by themselves.
    """
    raised, last = Raised(), 0
    busy: dict[int, str] = {}
    unfinished = SplitOrder.objects.unfinished().order_by("pk")
    while rows := dict(unfinished.filter(pk__gt=last).values_list("pk", "number")[:AT_ONCE]):
        free = _raise(list(rows), to, author)
        raised.count += len(free)
        busy |= {pk: number for pk, number in rows.items() if pk not in free}
        last = max(rows)
    for pk, number in busy.items():
        holder = find_holder(pk)
        if holder is None and _raise([pk], to, author):
            raised.count += 1
        else:
            raised.held[number] = holder or Holder(hint=HOLDERS_CHANGE)
    return raised


def _raise(ids: list[int], to: int, author: Author) -> set[int]:
    """Raise the epochs of those of ``ids`` that nobody has locked; return which."""

    def attempt() -> set[int]:
        with transaction.atomic():
            skip_locked = connection.features.has_select_for_update_skip_locked
            rows = SplitOrder.objects.select_for_update(skip_locked=skip_locked)
            free = set(rows.filter(pk__in=ids).values_list("pk", flat=True))
            if free:
                before = _epochs(free)
                SplitOrder.objects.filter(pk__in=free).fence_off(to)
                _record(free, to, author, before=before)
        return free

    return with_retries(attempt)


def _epochs(ids: set[int]) -> dict[str, int]:
    """Return the least and the greatest epoch of some orders."""
    return SplitOrder.objects.filter(pk__in=ids).aggregate(
        least_epoch=Min("finalize_epoch"), greatest_epoch=Max("finalize_epoch")
    )


def _record(ids: set[int], to: int, author: Author, *, before: dict[str, int]) -> None:
    audit.record(
        actor=author.actor,
        action=restoring.DATABASE_RESTORED,
        target_type=restoring.TARGET,
        target_id=TABLE,
        reason=author.reason,
        before=before,
        after=_epochs(ids),
        evidence={"raised_to": to, "orders": len(ids), "from_id": min(ids), "to_id": max(ids)},
    )
