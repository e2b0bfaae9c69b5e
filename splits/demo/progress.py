"""How far the demo's work is, by the database, and what it waits for."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from ledger.models import OutboxEntry, Transaction
from recovery.models import Job
from splits.models import OrderStatus, SplitOrder

SHOWN = 5


@dataclass(frozen=True)
class Progress:
    """How far the work is."""

    finalized: int
    waiting: int
    failed: int
    posted: int
    pending: int
    """Entries that will be posted by themselves."""
    held_back: int
    """Entries that wait behind a dead one: not before somebody decides about that."""

    @property
    def done(self) -> bool:
        """Tell whether nothing is left to do."""
        return not self.waiting and not self.pending

    def __str__(self) -> str:
        """Return one line for people."""
        text = _(
            "%(finalized)s orders finalized, %(waiting)s waiting, %(failed)s failed;"
            " %(posted)s ledger transactions posted, %(pending)s pending"
        )
        return text % vars(self)


def progress() -> Progress:
    """Return how far the work is by the database."""
    orders = SplitOrder.objects
    pending = OutboxEntry.objects.pending()
    held_back = pending.filter(aggregate__in=OutboxEntry.objects.dead().values("aggregate")).count()
    return Progress(
        finalized=orders.filter(status=OrderStatus.FINALIZED).count(),
        waiting=orders.filter(status=OrderStatus.READY).count(),
        failed=orders.filter(status__in=(OrderStatus.FAILED, OrderStatus.QUARANTINED)).count(),
        posted=Transaction.objects.count(),
        pending=pending.count() - held_back,
        held_back=held_back,
    )


def what_hangs() -> str:
    """Return the first orders and entries that still wait, with their last error."""
    orders = SplitOrder.objects.filter(status=OrderStatus.READY).order_by("pk")[:SHOWN]
    entries = OutboxEntry.objects.pending().order_by("pk")[:SHOWN]
    none = _("no error")
    lines = [f"{it.number}: {it.last_finalize_error or none}" for it in orders]
    lines += [f"{it.event_key}: {it.last_error or none}" for it in entries]
    return "; ".join(lines)


def paused_jobs() -> list[str]:
    """Return the names of the jobs that are paused."""
    paused = Job.objects.exclude(paused_at=None).order_by("name")
    return list(paused.values_list("name", flat=True))
