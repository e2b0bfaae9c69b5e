"""How far a finalization got, and where it was seen to hang."""

from datetime import datetime
from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _


class StepName(models.TextChoices):
    """The five steps, in the order they are taken."""

    VALIDATE = "validate", _("validate")
    CONSUME_SOURCE = "consume_source", _("consume source")
    CREATE_OUTPUTS = "create_outputs", _("create outputs")
    POST_LEDGER = "post_ledger", _("post ledger")
    NOTIFY = "notify", _("notify")


class FinalizeStep(models.Model):
    """A step that is done."""

    order = models.ForeignKey(
        "SplitOrder", models.CASCADE, related_name="steps", verbose_name=_("order")
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


class SightingQuerySet(models.QuerySet["StuckSighting"]):
    """Conditions of sightings."""

    def older_than(self, moment: datetime) -> Self:
        """Return the sightings made before ``moment``."""
        return self.filter(seen_at__lt=moment)

    def first_time(self, order_id: int, epoch: int) -> bool:
        """Note that this epoch of the order is stuck; False: it was noted before."""
        _sighting, is_new = self.get_or_create(order_ref=order_id, epoch=epoch)
        return is_new

    def of(self, order_id: int, epoch: int) -> Self:
        """Return the sighting of this epoch of the order, if there is one."""
        return self.filter(order_ref=order_id, epoch=epoch)

    def note_holder(self, holder: dict[str, Any]) -> bool:
        """Keep the last holder seen; one that has no name never replaces one that has."""
        sightings = self
        if holder.get("connection_id") is None:
            sightings = self.filter(Q(held_at=None) | Q(held_by__connection_id=None))
        return bool(sightings.update(held_at=Now(), held_by=holder))


class StuckSighting(models.Model):
    """A finalization was seen to be stuck.

    No foreign key and no column of the order: its row may be locked by what hangs.
    """

    order_ref = models.BigIntegerField(_("order"))
    epoch = models.PositiveBigIntegerField(_("epoch"))
    seen_at = models.DateTimeField(_("seen at"), db_default=Now())
    held_at = models.DateTimeField(_("held at"), null=True, blank=True)
    held_by = models.JSONField(
        _("held by"),
        null=True,
        blank=True,
        help_text=_("The last database connection seen to hold the order's row."),
    )

    objects = SightingQuerySet.as_manager()

    class Meta:
        """Each epoch of an order once; dropped by age."""

        ordering = ["-id"]
        indexes = [models.Index(fields=["seen_at"], name="sighting_seen_at")]
        constraints = [models.UniqueConstraint(fields=["order_ref", "epoch"], name="sighting_once")]
        verbose_name = _("stuck sighting")
        verbose_name_plural = _("stuck sightings")

    def __str__(self) -> str:
        """Return order and epoch."""
        return f"{self.order_ref}@{self.epoch}"
