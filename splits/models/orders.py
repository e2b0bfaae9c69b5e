"""Split orders and their lines."""

from collections.abc import Sequence

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from recovery.fields import KeyField, QuantityField
from splits.models.lots import Lot
from splits.models.transitions import OrderStatus, SplitOrderQuerySet


class LineKind(models.TextChoices):
    """What becomes of a line's child lot."""

    PIECE = "piece", _("piece")
    OFFCUT = "offcut", _("offcut")


class SplitOrder(models.Model):
    """Breaks one source lot into child lots."""

    number = KeyField(_("number"), unique=True, max_length=120)
    source_lot = models.ForeignKey(
        Lot, models.PROTECT, related_name="split_orders", verbose_name=_("source lot")
    )
    live_lot = models.OneToOneField(
        Lot,
        models.PROTECT,
        null=True,
        blank=True,
        editable=False,
        related_name="live_order",
        verbose_name=_("lot held"),
        help_text=_(
            "The source lot until the order is cancelled or reversed: one live order a lot."
        ),
    )
    status = models.CharField(
        _("status"), max_length=12, choices=OrderStatus, default=OrderStatus.DRAFT
    )
    finalize_in_progress = models.BooleanField(_("finalize in progress"), default=False)
    finalize_epoch = models.PositiveBigIntegerField(_("finalize epoch"), default=0)
    finalize_owner = models.CharField(
        _("finalizer"), max_length=200, blank=True, default="", help_text=_("host:process:token")
    )
    finalize_attempts = models.PositiveIntegerField(_("finalize attempts"), default=0)
    finalize_started_at = models.DateTimeField(_("finalize started at"), null=True, blank=True)
    finalize_progress_at = models.DateTimeField(_("finalize progress at"), null=True, blank=True)
    next_finalize_at = models.DateTimeField(_("next finalize at"), null=True, blank=True)
    last_finalize_error = models.TextField(_("last finalize error"), blank=True, default="")
    last_finalize_error_code = models.CharField(
        _("last finalize error code"), max_length=50, blank=True, default=""
    )
    recovery_count = models.PositiveIntegerField(_("recoveries"), default=0)
    recovered_at = models.JSONField(
        _("recovered at"), default=list, blank=True, help_text=_("Times of resets, oldest first.")
    )
    finalized_at = models.DateTimeField(_("finalized at"), null=True, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    # The trace in which it was submitted. The default is the database's: workers from before the
    # column go on making orders.
    traceparent = models.CharField(
        _("traceparent"), max_length=55, blank=True, default="", db_default=""
    )

    objects = SplitOrderQuerySet.as_manager()

    _lines: Sequence["SplitLine"] | None = None

    class Meta:
        """Newest first; due and stuck orders have their index."""

        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["status", "finalize_in_progress", "next_finalize_at", "id"],
                name="order_due",
            ),
            models.Index(
                fields=["finalize_in_progress", "finalize_progress_at"], name="order_stuck"
            ),
            models.Index(fields=["status", "id"], name="order_status_id"),  # the admin's filter
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=OrderStatus.values), name="order_status_known"
            ),
            models.CheckConstraint(
                condition=Q(finalize_in_progress=False) | Q(status=OrderStatus.READY),
                name="order_in_progress_is_ready",
            ),
        ]
        permissions = [
            ("recover_splitorder", "Can recover stuck split orders"),
            ("retry_splitorder", "Can retry failed split orders"),
            ("release_splitorder", "Can release quarantined split orders"),
            ("cancel_splitorder", "Can cancel split orders"),
            ("reverse_splitorder", "Can reverse split orders"),
        ]
        verbose_name = _("split order")
        verbose_name_plural = _("split orders")

    def __str__(self) -> str:
        """Return the number."""
        return self.number

    def all_lines(self) -> Sequence["SplitLine"]:
        """Return the lines in their order, read once."""
        if self._lines is None:
            self._lines = list(self.lines.order_by("line"))
        return self._lines

    def keep_lines(self, lines: Sequence["SplitLine"]) -> None:
        """Keep the lines, in their order, that were read of many orders at once."""
        self._lines = lines

    @property
    def event_key(self) -> str:
        """Return the key of the order's ledger entry."""
        return f"split-order:{self.number}:finalized"

    @property
    def reversal_key(self) -> str:
        """Return the key of the ledger entry that reverses the order's."""
        return f"split-order:{self.number}:reversed"


class SplitLine(models.Model):
    """One child lot to be."""

    order = models.ForeignKey(
        SplitOrder, models.CASCADE, related_name="lines", verbose_name=_("order")
    )
    line = models.PositiveSmallIntegerField(_("line"))
    kind = models.CharField(_("kind"), max_length=10, choices=LineKind)
    sku = KeyField(_("SKU"), max_length=180)
    quantity = QuantityField(_("quantity"))

    class Meta:
        """In the order of the lines."""

        ordering = ["order_id", "line"]
        constraints = [
            models.UniqueConstraint(fields=["order", "line"], name="split_line_once"),
            models.CheckConstraint(condition=Q(kind__in=LineKind.values), name="line_kind_known"),
            models.CheckConstraint(condition=Q(quantity__gt=0), name="line_quantity_positive"),
            models.CheckConstraint(
                condition=Q(line__gte=1) & Q(line__lte=999), name="line_three_digits"
            ),
        ]
        verbose_name = _("split line")
        verbose_name_plural = _("split lines")

    def __str__(self) -> str:
        """Return line and SKU."""
        return f"{self.line}: {self.sku}"
