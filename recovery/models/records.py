"""Rows that are added and read, never changed: audit records among them."""

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from recovery.fields import KeyField

if TYPE_CHECKING:
    from recovery.models.archives import AuditArchive

T = TypeVar("T", bound=models.Model, covariant=True)


class AppendOnlyError(TypeError):
    """These records are append-only: they are never changed or removed."""

    def __init__(self) -> None:
        """Say what the class says."""
        super().__init__(type(self).__doc__)


class AppendOnlyQuerySet(models.QuerySet[T]):
    """Rows that can be added and read."""

    def update(self, **_kwargs: Any) -> NoReturn:
        """Refuse (AppendOnlyError)."""
        raise AppendOnlyError

    def delete(self) -> NoReturn:
        """Refuse (AppendOnlyError)."""
        raise AppendOnlyError


class AppendOnly(models.Model):
    """Base of tables whose rows are never updated or deleted through the ORM."""

    objects = AppendOnlyQuerySet.as_manager()

    class Meta:
        """No table of its own."""

        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Insert; refuse to update (AppendOnlyError)."""
        if not self._state.adding:
            raise AppendOnlyError
        kwargs["force_insert"] = True
        super().save(*args, **kwargs)

    def delete(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse (AppendOnlyError)."""
        raise AppendOnlyError


class AuditRecordQuerySet(AppendOnlyQuerySet["AuditRecord"]):
    """Audit records; they leave the table for an archive, and in no other way."""

    def leave_for(self, archive: "AuditArchive") -> int:
        """Delete them from the table, as records that the file of ``archive`` has.

        Only the ids of its seals, and only once its file was read back; the database's triggers,
        where it has them, hold everybody to that. Returns how many went.
        """
        if archive.status == "placing":
            raise AppendOnlyError
        deleted, _by_model = models.QuerySet.delete(self.order_by())
        return deleted


class AuditEntry(models.Model):
    """Who changed what, when and why."""

    CONTENT: ClassVar = (
        "actor",
        "action",
        "target_type",
        "target_id",
        "reason",
        "before",
        "after",
        "evidence",
        "run_id",
    )
    """The columns but for id and time."""

    actor = models.CharField(_("actor"), max_length=200)
    action = models.CharField(_("action"), max_length=100)
    target_type = models.CharField(_("target type"), max_length=100)
    target_id = KeyField(_("target"))
    reason = models.TextField(_("reason"), blank=True, default="")
    before = models.JSONField(_("before"), default=dict, blank=True)
    after = models.JSONField(_("after"), default=dict, blank=True)
    evidence = models.JSONField(_("evidence"), default=dict, blank=True)
    run_id = models.UUIDField(_("run"), null=True, blank=True)

    class Meta:
        """No table of its own."""

        abstract = True

    def __str__(self) -> str:
        """Return action and target."""
        return f"{self.action} {self.target_type}:{self.target_id}"


class AuditRecord(AppendOnly, AuditEntry):
    """Who changed what, when and why; written in the transaction of the change."""

    at = models.DateTimeField(_("at"), db_default=Now(), editable=False)

    objects: ClassVar = AuditRecordQuerySet.as_manager()

    class Meta:
        """Newest first; found by target, action and time."""

        ordering = ["-id"]
        indexes = [
            models.Index(fields=["target_type", "target_id", "id"], name="audit_target"),
            models.Index(fields=["action", "id"], name="audit_action"),
            models.Index(fields=["at"], name="audit_at"),
            # For the admin's search.
            models.Index(fields=["actor", "id"], name="audit_actor"),
            models.Index(fields=["run_id", "id"], name="audit_run"),
        ]
        verbose_name = _("audit record")
        verbose_name_plural = _("audit records")
