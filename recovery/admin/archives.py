"""Archives of audit records and their seals in the admin."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.contrib import admin
from django.db.models import Count, Max, Min, Model
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from recovery import retention
from recovery.admin import audited, trail
from recovery.admin.lists import Choice, ChoiceFilter
from recovery.admin.paging import grouped
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.tables import (
    NOTHING,
    copyable,
    cut,
    dated,
    link,
    list_of,
    moment,
    moment_of,
    page_of_key,
    state,
    unbroken,
)
from recovery.models import ArchiveStatus, AuditArchive, AuditSeal, Tier
from recovery.models.seals import span_text
from recovery.trail import archiving, copies


def find(name: str) -> Model | None:
    """Return the archive of this name."""
    return AuditArchive.objects.defer("terms").filter(name=name).first()


audited.register(archiving.TARGET, find, actions=(archiving.ARCHIVED, copies.RESTORED))
audited.register(
    retention.TARGET,
    lambda _name: None,  # it has no page
    actions=(retention.APPLIED,),
)


class TierFilter(ChoiceFilter):
    """By where they are."""

    title = _("tier")
    parameter_name = column = "tier"
    values = Tier.choices


class StatusFilter(ChoiceFilter):
    """By how far they are."""

    title = _("status")
    parameter_name = column = "status"
    values = ArchiveStatus.choices


@admin.register(AuditArchive)
class AuditArchiveAdmin(ReadOnlyAdmin):
    """What files of audit records there are, and what is in them."""

    list_display = ("day_shown", "name", "tier_shown", "status_shown", "records", "bytes", "times")
    list_display_links = ("day_shown", "name")
    list_filter = (TierFilter, StatusFilter)
    ordering = ("-day", "-part")
    sortable_by = ("day_shown",)
    search_fields = ("name", "id")
    search_help_text = _("Exactly: the name of a file, or an id.")
    fieldsets = (
        (None, {"fields": ("name", "day_shown", "part", "status_shown", "tier_shown", "doubled")}),
        (
            _("What is in it"),
            {"fields": ("records", "bytes", "sha256_shown", "ids", "first", "last")},
        ),
        (_("Seals"), {"fields": ("seals_shown", "last_seal_shown", "seal_hash_shown")}),
        (_("Times"), {"fields": ("created", "written", "done", "cold", "aside")}),
    )
    created = moment_of(AuditArchive, "created_at")
    written = moment_of(AuditArchive, "written_at")
    done, cold = moment_of(AuditArchive, "done_at"), moment_of(AuditArchive, "cold_at")

    def get_queryset(self, request: HttpRequest) -> Any:
        """Read nothing that only the search needs."""
        return super().get_queryset(request).defer("terms")

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the order of days, filtered or not: there are a few files a day."""
        return self.ordering

    def buttons(self, request: HttpRequest, row: Any) -> Iterable[Mapping[str, Any]]:
        """Lead to the search for the records of its day."""
        if request.user.has_perm(trail.MAY_SEE):
            yield {"url": trail.of_day(row), "label": gettext("Search the records of this day")}

    @column(_("day"), ordering="day")
    def day_shown(self, row: AuditArchive) -> SafeString:
        """Return the day (UTC)."""
        return unbroken(f"{row.day:%Y-%m-%d}")

    @column(_("tier"))
    def tier_shown(self, row: AuditArchive) -> SafeString:
        """Return where it is."""
        return state(row.tier, row.get_tier_display())

    @column(_("status"))
    def status_shown(self, row: AuditArchive) -> SafeString:
        """Return how far it is."""
        return state(row.status, row.get_status_display())

    @column(_("in both tiers"))
    def doubled(self, row: AuditArchive) -> str:
        """Tell whether the file is in both tiers, on its way from one to the other."""
        return gettext("yes") if row.is_doubled else gettext("no")

    @column(_("records"))
    def records(self, row: AuditArchive) -> str:
        """Return how many records it has."""
        return grouped(row.count)

    @column(_("size"))
    def bytes(self, row: AuditArchive) -> SafeString:
        """Return the size of the file."""
        return unbroken(filesizeformat(row.size))

    @column(_("from, to"))
    def times(self, row: AuditArchive) -> SafeString:
        """Return the times of its first and its last record."""
        return format_html("{}<br>{}", _time(row.first_at), _time(row.last_at))

    @column(_("SHA-256"))
    def sha256_shown(self, row: AuditArchive) -> SafeString:
        """Return the hash of the file."""
        return copyable(row.sha256)

    @column(_("first record"))
    def first(self, row: AuditArchive) -> Any:
        """Return the time of the first record."""
        return dated(row.first_at)

    @column(_("last record"))
    def last(self, row: AuditArchive) -> Any:
        """Return the time of the last record."""
        return dated(row.last_at)

    @column(_("ids"))
    def ids(self, row: AuditArchive) -> str:
        """Return the lowest and the highest id."""
        return f"{row.first_id} {NOTHING} {row.last_id}"

    @column(_("seals"))
    def seals_shown(self, row: Any) -> Any:
        """Return the first and the last number of its seals, with a link to their list."""
        found = row.seals.aggregate(first=Min("number"), last=Max("number"), n=Count("number"))
        if not found["n"]:
            return NOTHING
        text = ngettext("%(n)s seal", "%(n)s seals", found["n"]) % {"n": grouped(found["n"])}
        numbers = span_text((found["first"], found["last"]))
        return format_html(
            '{}: <a href="{}">{}</a>', numbers, list_of(AuditSeal, archive=row.pk), text
        )

    @column(_("last seal"))
    def last_seal_shown(self, row: AuditArchive) -> SafeString:
        """Return the number of the last seal, with a link to its page."""
        url = page_of_key(AuditSeal, row.last_seal)
        return format_html('<a href="{}">{}</a>', url, row.last_seal)

    @column(_("its hash"))
    def seal_hash_shown(self, row: AuditArchive) -> SafeString:
        """Return the hash of the last seal."""
        return copyable(row.seal_hash)


class ArchiveFilter(ChoiceFilter):
    """By archive: the one that the address names."""

    title = _("archive")
    parameter_name, column = "archive", "archive_id"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Choice]:
        """Return the archive that is asked for, by its name."""
        wanted = request.GET.get("archive", "")
        if not (wanted.isascii() and wanted.isdecimal()):
            return []
        found = AuditArchive.objects.filter(pk=wanted).values_list("pk", "name")
        return [(str(pk), name) for pk, name in found]


@admin.register(AuditSeal)
class AuditSealAdmin(ReadOnlyAdmin):
    """The chain of seals."""

    list_display = ("number", "day_shown", "at_shown", "records", "archive_name")
    list_filter = (ArchiveFilter,)
    ordering = ("-number",)
    sortable_by = ("number",)
    search_fields = ("number",)
    search_help_text = _("Exactly: a number.")
    fieldsets = (
        (None, {"fields": ("number", "day_shown", "at_shown", "archive_link")}),
        (_("What is in it"), {"fields": ("records", "ids", "first", "last")}),
        (
            _("Hashes"),
            {"fields": ("hash_shown", "digest", "previous_shown", "mac", "key")},
        ),
    )
    at_shown = moment_of(AuditSeal, "at")

    def get_queryset(self, request: HttpRequest) -> Any:
        """Read nothing that only sealing and verifying need; archives in the same statement."""
        rows = super().get_queryset(request).select_related("archive")
        return rows.defer("marks", "gaps", "archive__terms")

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the order of the index that serves the filter."""
        if "archive" in request.GET:
            return ("-archive_id", "-day", "-number")
        return self.ordering

    @column(_("day"))
    def day_shown(self, row: AuditSeal) -> SafeString:
        """Return the day (UTC) of its records."""
        return unbroken(f"{row.day:%Y-%m-%d}")

    @column(_("records"))
    def records(self, row: AuditSeal) -> str:
        """Return over how many records it is."""
        return grouped(row.count)

    @column(_("archive"))
    def archive_name(self, row: AuditSeal) -> str:
        """Return the name of the archive that has its records."""
        return row.archive.name if row.archive else gettext("in the table")

    @column(_("archive"))
    def archive_link(self, row: AuditSeal) -> SafeString | str:
        """Return the archive that has its records, with a link to its page."""
        return link(row.archive) if row.archive else gettext("in the table")

    @column(_("first record"))
    def first(self, row: AuditSeal) -> Any:
        """Return the time of the first record."""
        return dated(row.first_at)

    @column(_("last record"))
    def last(self, row: AuditSeal) -> Any:
        """Return the time of the last record."""
        return dated(row.last_at)

    @column(_("ids"))
    def ids(self, row: AuditSeal) -> str:
        """Return the ids of its records."""
        return cut(", ".join(map(span_text, row.ranges())))

    @column(_("hash"))
    def hash_shown(self, row: AuditSeal) -> SafeString:
        """Return the hash, to be compared with one that was kept elsewhere."""
        return copyable(f"{row.number}:{row.hash}", row.hash)

    @column(_("seal before"))
    def previous_shown(self, row: AuditSeal) -> SafeString | str:
        """Return the hash of the seal before it, with a link to its page."""
        if not row.previous:
            return NOTHING
        url = page_of_key(AuditSeal, row.number - 1)
        return format_html('<a href="{}">{}</a>', url, row.previous)


def _time(value: Any) -> SafeString:
    return unbroken(moment(value))
