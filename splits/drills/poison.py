"""Outbox entries that the ledger refuses: made for a drill, hurried to their end, discarded."""

from decimal import Decimal

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from ledger import outbox
from ledger.models import OutboxEntry
from recovery import foreground
from recovery.plans import PlanError
from recovery.wakeups import wake_on_commit
from splits.audit import Author
from splits.drills.goods import UNIT, entries_of
from splits.drills.names import SKU
from splits.imports import RECEIPTS

EVENT = "drill-poison"


def publish_poison(code: str, aggregate: str) -> OutboxEntry:
    """Publish an entry that takes out more than it puts in; needs a transaction."""
    return outbox.publish(
        event_key=f"drill:{code}:poison",
        event_type=EVENT,
        aggregate=aggregate,
        lines=[
            outbox.Line(f"stock:{SKU}", Decimal(1), UNIT),
            outbox.Line(RECEIPTS, Decimal(-2), UNIT),
        ],
    )


def poison_of(code: str) -> QuerySet[OutboxEntry]:
    """Return the poison of drill ``code``."""
    return entries_of(code).filter(event_type=EVENT)


def hurry(entry: OutboxEntry) -> bool:
    """Let a refused entry make its last attempt now; False: it is due, or was never tried."""
    last = settings.JOB_OUTBOX_MAX_ATTEMPTS - 1
    with transaction.atomic():
        hurried = OutboxEntry.objects.filter(pk=entry.pk).fast_forward(last)
        if hurried:
            wake_on_commit(outbox.JOB)
    return hurried


def discard(entry: OutboxEntry, author: Author) -> bool:
    """Discard a dead entry by a plan; those behind it come back. False: not dead, or held."""
    try:
        foreground.repair("outbox.discard", [entry.pk], actor=author.actor, reason=author.reason)
    except PlanError:
        return False
    return True
