"""What split orders can be asked for, and the guarded updates that move them on."""

from datetime import datetime
from typing import TYPE_CHECKING, Self

from django.db import models
from django.db.models import F
from django.db.models.functions import Greatest, Now
from django.utils.translation import gettext_lazy as _

from recovery.clock import seconds_from_now
from recovery.models import stored_text
from recovery.tracing.stored import as_retried

if TYPE_CHECKING:
    from splits.models.orders import SplitOrder  # noqa: F401 - named in a base class


class OrderStatus(models.TextChoices):
    """Where a split order stands; docs/architecture.md has the table of transitions."""

    DRAFT = "draft", _("draft")
    READY = "ready", _("ready")
    FINALIZED = "finalized", _("finalized")
    FAILED = "failed", _("failed")
    QUARANTINED = "quarantined", _("quarantined")
    CANCELLED = "cancelled", _("cancelled")
    REVERSED = "reversed", _("reversed")


UNFINISHED = (
    OrderStatus.DRAFT,
    OrderStatus.READY,
    OrderStatus.FAILED,
    OrderStatus.QUARANTINED,
)
"""What may still be claimed, or cancelled where nothing has moved yet."""


class SplitOrderQuerySet(models.QuerySet["SplitOrder"]):
    """Conditions of split orders, and verbs: each one guarded UPDATE."""

    def eligible(self) -> Self:
        """Return the orders that may be finalized, whatever their time."""
        # `= False` becomes `NOT column`, which no index serves.
        return self.filter(status=OrderStatus.READY, finalize_in_progress__in=(False,))

    def due(self) -> Self:
        """Return the eligible orders whose time has come by the database's clock."""
        return self.eligible().filter(next_finalize_at__lte=Now())

    def overdue(self, threshold_s: float) -> Self:
        """Return the orders that nobody has claimed though due for longer than ``threshold_s``.

        Nobody works them, or somebody who hangs has them locked.
        """
        return self.eligible().filter(next_finalize_at__lt=seconds_from_now(-threshold_s))

    def in_progress(self) -> Self:
        """Return the orders that are being finalized."""
        return self.filter(finalize_in_progress__in=(True,))

    def unfinished(self) -> Self:
        """Return the orders that are being finalized or may be claimed some day."""
        return self.filter(status__in=UNFINISHED)

    def stuck(self, threshold_s: float) -> Self:
        """Return the orders in progress without progress for longer than ``threshold_s``."""
        return self.in_progress().filter(finalize_progress_at__lt=seconds_from_now(-threshold_s))

    def held_under(self, epoch: int) -> Self:
        """Return the orders that the finalizer with this epoch still holds."""
        return self.in_progress().filter(finalize_epoch=epoch, status=OrderStatus.READY)

    def claim(self, owner: str) -> bool:
        """Begin an attempt: flag, new epoch, attempt counted; False: not eligible."""
        return bool(
            self.eligible().update(
                finalize_in_progress=True,
                finalize_epoch=F("finalize_epoch") + 1,
                finalize_attempts=F("finalize_attempts") + 1,
                finalize_owner=owner,
                finalize_started_at=Now(),
                finalize_progress_at=Now(),
            )
        )

    def progress(self, epoch: int) -> bool:
        """Note progress; False: the finalizer with this epoch was reset."""
        return bool(self.held_under(epoch).update(finalize_progress_at=Now()))

    def finish(self, epoch: int) -> bool:
        """Finalize; False: the finalizer with this epoch was reset."""
        return bool(
            self.held_under(epoch).update(
                status=OrderStatus.FINALIZED,
                finalize_in_progress=False,
                finalize_owner="",
                finalized_at=Now(),
                next_finalize_at=None,
                last_finalize_error="",
                last_finalize_error_code="",
            )
        )

    def finish_locked(self) -> int:
        """Claim and finalize, in one, due orders that the caller has locked; return how many.

        By their ids alone: by status as well, an UPDATE may go through others' rows and wait.
        """
        return self.update(
            status=OrderStatus.FINALIZED,
            finalize_epoch=F("finalize_epoch") + 1,
            finalize_attempts=F("finalize_attempts") + 1,
            finalize_started_at=Now(),
            finalize_progress_at=Now(),
            finalized_at=Now(),
            next_finalize_at=None,
            last_finalize_error="",
            last_finalize_error_code="",
        )

    def advance_locked(self) -> int:
        """Fence off, by a new epoch, steps taken of due orders that the caller has locked.

        They are still due: an attempt is counted by who claims them for the rest.
        """
        return self.update(finalize_epoch=F("finalize_epoch") + 1)

    def fail(self, epoch: int, *, code: str, error: str, delay_s: float | None) -> bool:
        """End an attempt that failed; without ``delay_s`` the order's attempts are used up."""
        status = OrderStatus.FAILED if delay_s is None else OrderStatus.READY
        return bool(
            self.held_under(epoch).update(
                status=status,
                finalize_in_progress=False,
                finalize_owner="",
                next_finalize_at=None if delay_s is None else seconds_from_now(delay_s),
                last_finalize_error=stored_text(error),
                last_finalize_error_code=code,
            )
        )

    def postpone(self, epoch: int, *, code: str, error: str, delay_s: float) -> bool:
        """End an attempt that is not the order's fault: it is not charged."""
        return bool(
            self.held_under(epoch).update(
                finalize_in_progress=False,
                finalize_owner="",
                finalize_attempts=F("finalize_attempts") - 1,
                next_finalize_at=seconds_from_now(delay_s),
                last_finalize_error=stored_text(error),
                last_finalize_error_code=code,
            )
        )

    def reset(
        self,
        epoch: int,
        *,
        status: str,
        next_finalize_at: datetime | None,
        recovered_at: list[str],
        charged: bool = True,
    ) -> bool:
        """Take the order from the finalizer with this epoch; False: it has moved on."""
        return bool(
            self.held_under(epoch).update(
                status=status,
                finalize_in_progress=False,
                finalize_owner="",
                finalize_epoch=F("finalize_epoch") + 1,
                finalize_attempts=F("finalize_attempts") - (0 if charged else 1),
                next_finalize_at=next_finalize_at,
                recovery_count=F("recovery_count") + 1,
                recovered_at=recovered_at,
            )
        )

    def fence_off(self, epoch: int) -> int:
        """Raise the epochs to ``epoch`` at least: every finalizer of before commits nothing."""
        return self.update(finalize_epoch=Greatest(F("finalize_epoch") + 1, epoch))

    def submit(self, *, due: bool = True, traceparent: str = "") -> bool:
        """Make drafts ready and, with ``due``, due; False: not a draft."""
        trace = {"traceparent": traceparent} if traceparent else {}
        return bool(
            self.filter(status=OrderStatus.DRAFT).update(
                status=OrderStatus.READY, next_finalize_at=Now() if due else None, **trace
            )
        )

    def retry(self, *, due: bool = True) -> bool:
        """Give failed orders fresh attempts; False: not failed."""
        return bool(
            self.filter(status=OrderStatus.FAILED).update(
                status=OrderStatus.READY,
                next_finalize_at=Now() if due else None,
                finalize_attempts=0,
                traceparent=as_retried(),
            )
        )

    def release(self, *, due: bool) -> bool:
        """Let quarantined orders go with fresh counters; False: not quarantined."""
        return bool(
            self.filter(status=OrderStatus.QUARANTINED).update(
                status=OrderStatus.READY,
                next_finalize_at=Now() if due else None,
                finalize_attempts=0,
                recovery_count=0,
                recovered_at=[],
                traceparent=as_retried(),
            )
        )

    def cancel(self) -> bool:
        """Cancel orders that have not begun to move stock; the lot is free again."""
        return bool(
            self.filter(status__in=UNFINISHED, finalize_in_progress=False).update(
                status=OrderStatus.CANCELLED, next_finalize_at=None, live_lot=None
            )
        )

    def mark_reversed(self) -> bool:
        """Mark finalized orders as reversed; the lot is free again."""
        return bool(
            self.filter(status=OrderStatus.FINALIZED).update(
                status=OrderStatus.REVERSED, live_lot=None
            )
        )
