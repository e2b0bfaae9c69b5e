"""Audit records in the admin."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from recovery.admin import audited, trail
from recovery.admin.lists import Choice, ChoiceFilter
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.search import newest
from recovery.admin.secrecy import masked
from recovery.admin.tables import above, dated, link, moment_of, pretty, shown
from recovery.console import Shortcut, shortcut
from recovery.models import (
    AuditArchive,
    AuditEntry,
    AuditRecord,
    AuditSeal,
    AuditSealSpan,
    JobRun,
    RestoredRecord,
)
from recovery.search import archived_record
from recovery.trail.stores import StoreError

SHOWN_REASON = 120
MAY_SEE_SEALS = "recovery.view_auditseal"


shortcut(
    Shortcut(
        5,
        _("Audit records"),
        "history_edu",
        "recovery_auditrecord_changelist",
        "recovery.view_auditrecord",
    )
)


class ActionFilter(ChoiceFilter):
    """By what was done."""

    title = _("action")
    parameter_name = column = "action"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Choice]:
        """Return the actions that the apps have registered."""
        return [(action, action) for action in audited.actions()]


class EntryAdmin(ReadOnlyAdmin):
    """Who changed what, when and why: records, or copies of them."""

    list_display = ("at_shown", "what", "target", "actor")
    list_filter = (ActionFilter,)
    sortable_by = ("at_shown",)
    search_fields = ("id", "actor", "action", "run_id")
    search_help_text = _(
        "Exactly: a target such as split-order/1042 or 1042, an actor, an action, a run, an id."
    )
    fieldsets = (
        (None, {"fields": ("at_shown", "actor", "action", "target_link", "reason", "run_link")}),
        (_("What changed"), {"fields": ("before_shown", "after_shown", "evidence_shown")}),
        (_("Archive and seal"), {"fields": ("where_shown", "seal_shown")}),
    )
    at_shown = moment_of(AuditRecord, "at")

    def for_list(self, queryset: Any) -> Any:
        """Read the beginning of the reason, and no JSON."""
        heavy = ("reason", "before", "after", "evidence")
        return queryset.defer(*heavy).annotate(reason_begins=Left("reason", SHOWN_REASON))

    def matches(self, term: str) -> Iterator[Iterable[Any]]:
        """Yield what the fields say, and the records about the target ``term``."""
        yield from super().matches(term)
        kind, _slash, target_id = term.partition("/")
        rows = self.model._default_manager.all()
        if target_id:
            yield newest(rows.filter(target_type=kind, target_id=target_id))
        # The type comes first in the index.
        yield newest(rows.filter(target_type__in=audited.types(), target_id=term))

    @column(_("target"))
    def target(self, row: AuditEntry) -> str:
        """Return type and id of the target."""
        return f"{row.target_type}/{row.target_id}"

    @column(_("target"))
    def target_link(self, row: AuditEntry) -> Any:
        """Return the target with a link to its page."""
        found = audited.target_of(row)
        return link(found, self.target(row)) if found else self.target(row)

    @column(_("action"))
    def what(self, row: Any) -> Any:
        """Return what was done, and the beginning of the reason."""
        return above(row.action, row.reason_begins)

    @column(_("run"))
    def run_link(self, row: AuditEntry) -> Any:
        """Return the run that wrote the record, with a link to its page."""
        run = JobRun.objects.filter(run_id=row.run_id).first() if row.run_id else None
        return link(run) if run else shown(row.run_id)

    @column(_("before"))
    def before_shown(self, row: Any) -> SafeString | str:
        """Return what was before."""
        return pretty(masked(row.before, row.reader))

    @column(_("after"))
    def after_shown(self, row: Any) -> SafeString | str:
        """Return what is after."""
        return pretty(masked(row.after, row.reader))

    @column(_("evidence"))
    def evidence_shown(self, row: Any) -> SafeString | str:
        """Return what the change rests on."""
        return pretty(masked(row.evidence, row.reader))

    @column(_("archive"))
    def where_shown(self, row: Any) -> Any:
        """Return in which archive it is, or that it is in the table."""
        return trail.where(row, row.reader)

    @column(_("seal"))
    def seal_shown(self, row: Any) -> Any:
        """Return the seal over it."""
        seal = AuditSeal.objects.of_record(row.pk)
        if seal is None:
            return _unsealed(row.pk)
        number = link(seal) if row.reader.has_perm(MAY_SEE_SEALS) else seal
        text = '{}, {}<div class="quiet">{}</div>'
        return format_html(text, number, dated(seal.at), seal.hash)


def _unsealed(pk: int) -> str:
    """Say why a record is in no seal; ids that seals have passed are not sealed any more."""
    reached = AuditSealSpan.reached()  # first: a seal made since has in its gaps what it passed
    newest = AuditSeal.objects.defer("marks").newest()
    gaps = newest.gaps if newest else ()
    if newest and pk <= reached and not any(it[0] <= pk <= it[1] for it in gaps):
        return gettext("It is in no seal, though later ones are: see audit verify.")
    return gettext("It waits for the next seal.")


class UnreadableArchiveError(Exception):
    """The file that has the record cannot be read."""


@admin.register(AuditRecord)
class AuditRecordAdmin(EntryAdmin):
    """Records of the table; a record's page stays where it is when the record is archived."""

    def elsewhere(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Lead to the search of all tiers, for what is searched for here."""
        wanted = _searched(request.GET.get("q", "").strip())
        if action := request.GET.get("action"):
            wanted["action"] = action
        yield trail.search_url(**wanted), gettext("Search archived audit records, too")

    def change_view(self, request: Any, object_id: str, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show a record, also one that is in an archive."""
        request.looks_in_archives = True
        try:
            return super().change_view(request, object_id, *args, **kwargs)
        except UnreadableArchiveError as error:
            context = {"title": capfirst(self.opts.verbose_name), "trouble": error.__cause__}
            site: Any = self.admin_site
            page: HttpResponse = site.render(
                request, "admin/recovery/unreadable.html", context, status=503
            )
            return page

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        """Return the record from the table, else from the file that has it."""
        row: Any = super().get_object(request, object_id, from_field)
        wanted = getattr(request, "looks_in_archives", False)
        if row is None and wanted and self.has_view_permission(request):
            row = _archived(object_id)
            if row is not None:
                row.reader = request.user
        return row


def _archived(object_id: str) -> AuditRecord | None:
    if not (object_id.isascii() and object_id.isdecimal()):
        return None
    try:
        return archived_record(int(object_id))
    except (StoreError, ValueError) as error:
        raise UnreadableArchiveError from error


def _searched(text: str) -> dict[str, str]:
    """Return for which field of the search a term of the list was probably meant."""
    if not text:
        return {}
    if text in audited.actions():
        return {"action": text}
    with suppress(ValueError):
        return {"run": str(UUID(text))}
    if text.startswith(("cli:", "system:")) or _is_user(text):
        return {"actor": text}
    return {"target": text}


def _is_user(name: str) -> bool:
    users = get_user_model()._default_manager
    return users.filter(**{get_user_model().USERNAME_FIELD: name}).exists()


@admin.register(RestoredRecord)
class RestoredRecordAdmin(EntryAdmin):
    """Copies of archived records."""

    note = _(
        "These are copies of archived records, brought back to be looked at: the archives have the"
        " records themselves. manage.py audit restore --away removes the copies."
    )
    list_display = (*EntryAdmin.list_display, "archive_name")  # type: ignore[assignment]

    def for_list(self, queryset: Any) -> Any:
        """Read the archives in the same statement, without what is searched for in them."""
        queryset = super().for_list(queryset).select_related("archive")
        return queryset.defer("archive__terms")

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        """Return the copy with its archive."""
        row: Any = super().get_object(request, object_id, from_field)
        if row is not None:
            row.archive = AuditArchive.objects.defer("terms").get(pk=row.archive_id)
        return row

    @column(_("archive"))
    def archive_name(self, row: RestoredRecord) -> str:
        """Return the name of the archive that it is a copy from."""
        return row.archive.name
