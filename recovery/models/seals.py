"""Seals of audit records: each one over some records, and over the seal before it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext, pgettext_lazy
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from recovery.models.archives import AuditArchive

HEX_LENGTH = 64
KEY_NAME_LENGTH = 16

Span = tuple[int, int]
"""The first and the last of ids without a gap."""


class AuditSealQuerySet(models.QuerySet["AuditSeal"]):
    """Conditions of seals, and how they are filed."""

    def newest(self) -> "AuditSeal | None":
        """Return the seal that no other one follows."""
        return self.order_by("-number").first()

    def hot(self) -> Self:
        """Return the seals whose records are in the table alone."""
        return self.filter(archive=None)

    def in_table(self) -> Self:
        """Return the seals all of whose records are in the table."""
        return self.filter(Q(archive=None) | Q(archive__status="placing"))

    def before_day(self, day: Any) -> Self:
        """Return the seals of records of earlier days."""
        return self.filter(day__lt=day)

    def file_under(self, archive: "AuditArchive") -> int:
        """Note that their records are in ``archive``; those of another archive are left."""
        return self.hot().update(archive=archive)

    def keep_gaps(self, gaps: Sequence[Sequence[int]]) -> None:
        """Keep what the next seal has to look for."""
        self.update(gaps=gaps)

    def take_back(self) -> int:
        """Note that their records are in the table alone."""
        return self.update(archive=None)

    def of_record(self, pk: int) -> "AuditSeal | None":
        """Return the seal over the record of this id, without its marks and gaps."""
        span = AuditSealSpan.objects.filter(last_id__gte=pk).order_by("last_id").first()
        if span is None or span.first_id > pk:
            return None
        return self.defer("marks", "gaps").filter(pk=span.seal_id).first()

    def with_spans(self) -> Self:
        """Return them with the ids of their records, two statements for all of them."""
        return self.prefetch_related("spans")


class AuditSeal(models.Model):
    """A hash over records in the order of their ids, and over the seal before it.

    docs/audit.md has the format. All its records are of one day (UTC), so that a day's archive
    holds whole seals.
    """

    number = models.PositiveBigIntegerField(pgettext_lazy("of a seal", "number"), primary_key=True)
    day = models.DateField(_("day"))
    at = models.DateTimeField(_("at"))
    count = models.PositiveIntegerField(_("records"))
    size = models.PositiveBigIntegerField(_("bytes"))
    """Of the lines of its records: what holds them all is that large."""
    first_at = models.DateTimeField(_("first of"))
    last_at = models.DateTimeField(_("last of"))
    digest = models.CharField(_("digest"), max_length=HEX_LENGTH)
    previous = models.CharField(_("seal before"), max_length=HEX_LENGTH, blank=True, default="")
    hash = models.CharField(_("hash"), max_length=HEX_LENGTH)
    mac = models.CharField(_("keyed hash"), max_length=HEX_LENGTH)
    key = models.CharField(_("key"), max_length=KEY_NAME_LENGTH)
    marks = models.BinaryField(_("marks"))
    """Eight bytes of each record's hash: they tell which one was changed."""
    gaps = models.JSONField(_("gaps"), default=list)
    """Of the newest one: ids below the highest that were not there yet, and since when they
    are missing, ``[first, last, unix time]``."""
    archive = models.ForeignKey(
        "recovery.AuditArchive",
        models.PROTECT,
        null=True,
        blank=True,
        db_index=False,
        related_name="seals",
        verbose_name=_("archive"),
    )

    objects = AuditSealQuerySet.as_manager()

    class Meta:
        """In the order of the chain."""

        ordering = ["number"]
        indexes = [models.Index(fields=["archive", "day", "number"], name="auditseal_archive_day")]
        verbose_name = _("seal")
        verbose_name_plural = _("seals")

    def __str__(self) -> str:
        """Return the number."""
        return gettext("seal %(number)s") % {"number": self.number}

    def ranges(self) -> list[Span]:
        """Return the ids of its records, as spans in order."""
        return sorted((span.first_id, span.last_id) for span in self.spans.all())


class AuditSealSpan(models.Model):
    """Ids without a gap whose records one seal holds; no id is in two spans."""

    last_id = models.PositiveBigIntegerField(_("last id"), primary_key=True)
    first_id = models.PositiveBigIntegerField(_("first id"))
    seal = models.ForeignKey(
        AuditSeal, models.CASCADE, related_name="spans", verbose_name=_("seal")
    )

    class Meta:
        """In the order of ids: the span of an id is the first whose end is not below it."""

        ordering = ["last_id"]
        verbose_name = _("span of a seal")
        verbose_name_plural = _("spans of seals")

    def __str__(self) -> str:
        """Return it as the seal's text has it."""
        return span_text((self.first_id, self.last_id))

    @classmethod
    def reached(cls) -> int:
        """Return the highest id that was sealed; 0: none was."""
        return cls.objects.order_by("-last_id").values_list("last_id", flat=True).first() or 0


def spans_of(ids: Iterable[int]) -> Iterator[Span]:
    """Yield rising ids as spans."""
    first = last = None
    for pk in ids:
        if first is None or last is None:
            first = last = pk
        elif pk == last + 1:
            last = pk
        else:
            yield first, last
            first = last = pk
    if first is not None and last is not None:
        yield first, last


def span_text(span: Span) -> str:
    """Return a span as text: ``3-7``, or ``3``."""
    first, last = span
    return f"{first}-{last}" if last > first else str(first)
