"""Archives of audit records: a manifest a file, and records that were brought back to look at."""

from collections.abc import Iterable
from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from recovery.models.records import AuditEntry, AuditRecord
from recovery.models.seals import HEX_LENGTH


class ArchiveStatus(models.TextChoices):
    """How far an archive is; docs/architecture.md has the table of transitions."""

    PLACING = "placing", _("being put in its place")
    WRITTEN = "written", _("written, rows still there")
    DONE = "done", _("complete")


class Tier(models.TextChoices):
    """Where an archive is."""

    WARM = "warm", _("at hand")
    COLD = "cold", _("put away")


class AuditArchiveQuerySet(models.QuerySet["AuditArchive"]):
    """Conditions of archives, and verbs: each one guarded UPDATE."""

    def placed(self) -> Self:
        """Return the archives whose file is in its place."""
        return self.exclude(status=ArchiveStatus.PLACING)

    def unfinished(self) -> Self:
        """Return the archives on whose way to the end something stopped."""
        return self.filter(status__in=(ArchiveStatus.PLACING, ArchiveStatus.WRITTEN))

    def done(self) -> Self:
        """Return the archives whose records are nowhere else."""
        return self.filter(status=ArchiveStatus.DONE)

    def to_put_away(self, day: Any) -> Self:
        """Return the archives at hand of earlier days, and those a move was begun of."""
        old = Q(tier=Tier.WARM, day__lt=day)
        return self.done().filter(old | Q(is_doubled=True))

    def mark_written(self) -> bool:
        """Note that the file is in its place and was read back; False: somebody else did."""
        placing = self.filter(status=ArchiveStatus.PLACING)
        return bool(placing.update(status=ArchiveStatus.WRITTEN, aside="", written_at=Now()))

    def mark_done(self) -> bool:
        """Note that the table has none of the records; False: somebody else did."""
        written = self.filter(status=ArchiveStatus.WRITTEN)
        return bool(written.update(status=ArchiveStatus.DONE, done_at=Now()))

    def put_away(self) -> bool:
        """Note that the cold tier has the file, too; False: somebody else did."""
        warm = self.done().filter(tier=Tier.WARM)
        return bool(warm.update(tier=Tier.COLD, is_doubled=True, cold_at=Now()))

    def undouble(self) -> bool:
        """Note that the cold tier alone has the file."""
        return bool(self.filter(is_doubled=True).update(is_doubled=False))


class AuditArchive(models.Model):
    """The manifest of one file of audit records: what is in it, and how far it is."""

    name = models.CharField(_("name"), max_length=100, unique=True)
    day = models.DateField(_("day"))
    part = models.PositiveIntegerField(_("part"))
    status = models.CharField(
        _("status"), max_length=10, choices=ArchiveStatus, default=ArchiveStatus.PLACING
    )
    tier = models.CharField(_("tier"), max_length=10, choices=Tier, default=Tier.WARM)
    aside = models.CharField(_("written aside as"), max_length=200, blank=True, default="")
    is_doubled = models.BooleanField(_("in both tiers"), default=False)
    count = models.PositiveIntegerField(_("records"))
    size = models.PositiveBigIntegerField(_("bytes"))
    sha256 = models.CharField(_("SHA-256"), max_length=HEX_LENGTH)
    first_id = models.PositiveBigIntegerField(_("first id"))
    last_id = models.PositiveBigIntegerField(_("last id"))
    first_at = models.DateTimeField(_("first of"))
    last_at = models.DateTimeField(_("last of"))
    last_seal = models.PositiveBigIntegerField(_("last seal"))
    seal_hash = models.CharField(_("its hash"), max_length=HEX_LENGTH)
    terms = models.BinaryField(_("terms"))
    """A Bloom filter of the actors, actions, targets and runs in it."""
    created_at = models.DateTimeField(_("created"), db_default=Now(), editable=False)
    written_at = models.DateTimeField(_("written"), null=True, blank=True)
    done_at = models.DateTimeField(_("complete since"), null=True, blank=True)
    cold_at = models.DateTimeField(_("put away"), null=True, blank=True)

    objects = AuditArchiveQuerySet.as_manager()

    class Meta:
        """The newest day first."""

        ordering = ["-day", "-part"]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=ArchiveStatus.values), name="auditarchive_status"
            ),
            models.CheckConstraint(condition=Q(tier__in=Tier.values), name="auditarchive_tier"),
            models.UniqueConstraint(fields=["day", "part"], name="auditarchive_day_part"),
        ]
        indexes = [
            models.Index(fields=["status", "tier", "day"], name="auditarchive_status_tier"),
            models.Index(fields=["is_doubled"], name="auditarchive_doubled"),
            models.Index(fields=["last_at"], name="auditarchive_last_at"),
        ]
        verbose_name = _("audit archive")
        verbose_name_plural = _("audit archives")

    def __str__(self) -> str:
        """Return the file's name."""
        return self.name


class RestoredRecordQuerySet(models.QuerySet["RestoredRecord"]):
    """Records that were brought back; they are copies, so that they may go again."""

    def bring(self, records: Iterable[AuditRecord], archive: AuditArchive) -> int:
        """Store copies of records of ``archive``; return how many were not there."""
        rows = {it.pk: RestoredRecord.copy_of(it, archive) for it in records}
        known = set(self.filter(pk__in=rows).values_list("pk", flat=True))
        fresh = [row for pk, row in rows.items() if pk not in known]
        self.bulk_create(fresh)
        return len(fresh)


class RestoredRecord(AuditEntry):
    """A copy of an archived audit record, brought back to be looked at."""

    id = models.PositiveBigIntegerField(_("id"), primary_key=True)
    at = models.DateTimeField(_("at"))
    archive = models.ForeignKey(
        AuditArchive, models.PROTECT, related_name="restored", verbose_name=_("archive")
    )

    objects = RestoredRecordQuerySet.as_manager()

    class Meta:
        """Newest first; found as audit records are."""

        ordering = ["-id"]
        indexes = [
            models.Index(fields=["target_type", "target_id", "id"], name="restored_target"),
            models.Index(fields=["action", "id"], name="restored_action"),
            models.Index(fields=["at"], name="restored_at"),
            models.Index(fields=["actor", "id"], name="restored_actor"),
            models.Index(fields=["run_id", "id"], name="restored_run"),
        ]
        verbose_name = _("restored audit record")
        verbose_name_plural = _("restored audit records")

    @classmethod
    def copy_of(cls, record: AuditRecord, archive: AuditArchive) -> "RestoredRecord":
        """Return a copy that is not stored yet."""
        values = {name: getattr(record, name) for name in ("id", "at", *cls.CONTENT)}
        return cls(archive=archive, **values)
