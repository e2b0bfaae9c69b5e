"""Lots: boards, sheets and pallets."""

from collections.abc import Collection
from typing import Self

from django.db import connection, models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from recovery.fields import KeyField, QuantityField


class LotStatus(models.TextChoices):
    """Whether a lot can be split."""

    AVAILABLE = "available", _("available")
    CONSUMED = "consumed", _("consumed")
    CANCELLED = "cancelled", _("cancelled")


class LotQuerySet(models.QuerySet["Lot"]):
    """Conditions of lots and their guarded updates."""

    def available(self) -> Self:
        """Return the lots that can be split."""
        return self.filter(status=LotStatus.AVAILABLE)

    def locked(self) -> Self:
        """Return the lots with their rows, and no others, locked in id order, as everywhere.

        A locking read waits for each row it scans, and a small table is scanned whatever its
        indexes: it would wait for the lots of an order whose finalizer hangs. So they are found
        by a plain read.
        """
        found = list(self.order_by().values_list("pk", flat=True))
        return self.filter(pk__in=found).order_by("id").select_for_update()

    def locked_at_once(self, ids: Collection[int]) -> Self:
        """Return those of ``ids`` that nobody else has locked, locked in id order."""
        skip_locked = connection.features.has_select_for_update_skip_locked
        rows = self.filter(pk__in=ids).order_by("id")
        return rows.select_for_update(skip_locked=skip_locked)

    def consume(self) -> int:
        """Consume available lots; return how many."""
        return self.available().update(status=LotStatus.CONSUMED)

    def restore(self) -> int:
        """Make consumed lots available again; return how many."""
        return self.filter(status=LotStatus.CONSUMED).update(status=LotStatus.AVAILABLE)

    def cancel(self) -> int:
        """Cancel available lots; return how many."""
        return self.available().update(status=LotStatus.CANCELLED)

    def correct(self, before: LotStatus, after: LotStatus) -> int:
        """Give lots the status that they should have had; return how many."""
        return self.filter(status=before).update(status=after)

    def rename(self, code: str) -> int:
        """Give a cancelled lot another code, so that its own is free again."""
        return self.filter(status=LotStatus.CANCELLED).update(code=code)

    def with_code_in(self, codes: Collection[str]) -> Self:
        """Return the lots with one of these codes."""
        return self.filter(code__in=codes)


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

    objects = LotQuerySet.as_manager()

    class Meta:
        """Newest first; found by SKU and root."""

        ordering = ["-id"]
        indexes = [
            models.Index(fields=["sku", "unit", "status"], name="lot_sku_unit_status"),
            models.Index(fields=["root_code"], name="lot_root"),
            # For the admin's filter and search.
            models.Index(fields=["status", "id"], name="lot_status_id"),
            models.Index(fields=["sku", "id"], name="lot_sku_id"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=LotStatus.values), name="lot_status_known"
            ),
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
