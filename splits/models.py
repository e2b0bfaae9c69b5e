"""Rows of split orders: lots, orders, lines, steps, and the breaker of the endpoint."""

from typing import Self

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from recovery.clock import seconds_from_now
from recovery.fields import KeyField, QuantityField


class LotStatus(models.TextChoices):
    """Whether a lot can be split."""

    AVAILABLE = "available", _("available")
    CONSUMED = "consumed", _("consumed")
    CANCELLED = "cancelled", _("cancelled")


class OrderStatus(models.TextChoices):
    """Where a split order stands; docs/architecture.md has the table of transitions."""

    DRAFT = "draft", _("draft")
    READY = "ready", _("ready")
    FINALIZED = "finalized", _("finalized")
    FAILED = "failed", _("failed")
    QUARANTINED = "quarantined", _("quarantined")
    CANCELLED = "cancelled", _("cancelled")
    REVERSED = "reversed", _("reversed")


class LineKind(models.TextChoices):
    """What becomes of a line's child lot."""

    PIECE = "piece", _("piece")
    OFFCUT = "offcut", _("offcut")


class StepName(models.TextChoices):
    """The five steps, in the order they are taken."""

    VALIDATE = "validate", _("validate")
    CONSUME_SOURCE = "consume_source", _("consume source")
    CREATE_OUTPUTS = "create_outputs", _("create outputs")
    POST_LEDGER = "post_ledger", _("post ledger")
    NOTIFY = "notify", _("notify")


class Lot(models.Model):
    """A board, sheet or pallet."""

    code = KeyField(_("code"), unique=True)
    sku = KeyField(_("SKU"), max_length=180)
    quantity = QuantityField(_("quantity"))
    unit = KeyField(_("unit"), max_length=20)
    status = models.CharField(
        _("status"), max_length=10, choices=LotStatus, default=LotStatus.AVAILABLE
    )
    parent_order = models.ForeignKey(
        "SplitOrder",
        models.PROTECT,
        null=True,
        blank=True,
        related_name="outputs",
        verbose_name=_("made by order"),
    )
    root_code = KeyField(_("root lot"))
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)

    class Meta:
        """Newest first; found by SKU and root."""

        ordering = ["-id"]
        indexes = [
            models.Index(fields=["sku", "unit", "status"], name="lot_sku_unit_status"),
            models.Index(fields=["root_code"], name="lot_root"),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(status__in=LotStatus.values), name="lot_status_known"),
            models.CheckConstraint(condition=Q(quantity__gt=0), name="lot_quantity_positive"),
        ]
        verbose_name = _("lot")
        verbose_name_plural = _("lots")

    def __str__(self) -> str:
        """Return the code."""
        return self.code

    @property
    def aggregate(self) -> str:
        """Return the aggregate that orders this lot's ledger entries: its root lot's."""
        return f"lot:{self.root_code}"


class SplitOrderQuerySet(models.QuerySet["SplitOrder"]):
    """Conditions of split orders."""

    def eligible(self) -> Self:
        """Return the orders that may be finalized, whatever their time."""
        return self.filter(status=OrderStatus.READY, finalize_in_progress=False)

    def due(self) -> Self:
        """Return the eligible orders whose time has come by the database's clock."""
        return self.eligible().filter(next_finalize_at__lte=Now())

    def stuck(self, threshold_s: float) -> Self:
        """Return the orders in progress without progress for longer than ``threshold_s``."""
        return self.filter(
            finalize_in_progress=True, finalize_progress_at__lt=seconds_from_now(-threshold_s)
        )

    def held_under(self, epoch: int) -> Self:
        """Return the orders that the finalizer with this epoch still holds."""
        return self.filter(
            finalize_epoch=epoch, finalize_in_progress=True, status=OrderStatus.READY
        )


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
        help_text=_("The source lot until the order is cancelled or reversed: one live order a lot."),
    )
    status = models.CharField(
        _("status"), max_length=12, choices=OrderStatus, default=OrderStatus.DRAFT
    )
    finalize_in_progress = models.BooleanField(_("finalize in progress"), default=False)
    finalize_epoch = models.PositiveBigIntegerField(_("finalize epoch"), default=0)
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
    stuck_seen_epoch = models.PositiveBigIntegerField(
        _("epoch last seen stuck"), null=True, blank=True, editable=False
    )
    finalized_at = models.DateTimeField(_("finalized at"), null=True, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)

    objects = SplitOrderQuerySet.as_manager()

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
        verbose_name = _("split order")
        verbose_name_plural = _("split orders")

    def __str__(self) -> str:
        """Return the number."""
        return self.number

    @property
    def event_key(self) -> str:
        """Return the key of the order's ledger entry."""
        return f"split-order:{self.number}:finalized"


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


class FinalizeStep(models.Model):
    """A step that is done."""

    order = models.ForeignKey(
        SplitOrder, models.CASCADE, related_name="steps", verbose_name=_("order")
    )
    name = models.CharField(_("step"), max_length=20, choices=StepName)
    epoch = models.PositiveBigIntegerField(_("epoch"))
    completed_at = models.DateTimeField(_("completed at"), db_default=Now())

    class Meta:
        """Each step once an order."""

        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["order", "name"], name="finalize_step_once"),
            models.CheckConstraint(condition=Q(name__in=StepName.values), name="step_name_known"),
        ]
        verbose_name = _("finalize step")
        verbose_name_plural = _("finalize steps")

    def __str__(self) -> str:
        """Return the step's name."""
        return self.name


class Breaker(models.Model):
    """Whether an endpoint is worth calling, for every worker on every host."""

    endpoint = KeyField(_("endpoint"), primary_key=True)
    failures = models.PositiveIntegerField(_("failures in a row"), default=0)
    opened_at = models.DateTimeField(_("opened at"), null=True, blank=True)
    next_try_at = models.DateTimeField(_("next try at"), null=True, blank=True)

    class Meta:
        """One row an endpoint."""

        verbose_name = _("breaker")
        verbose_name_plural = _("breakers")

    def __str__(self) -> str:
        """Return the endpoint."""
        return self.endpoint
