"""Audit records in the admin."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.contrib import admin
from django.db.models.functions import Left
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from recovery.admin import audited
from recovery.admin.lists import Choice, ChoiceFilter
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.search import newest
from recovery.admin.secrecy import masked
from recovery.admin.tables import above, link, moment_of, pretty, shown
from recovery.console import Shortcut, shortcut
from recovery.models import AuditRecord, JobRun

SHOWN_REASON = 120


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


@admin.register(AuditRecord)
class AuditRecordAdmin(ReadOnlyAdmin):
    """Who changed what, when and why."""

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
        rows = AuditRecord.objects.all()
        if target_id:
            yield newest(rows.filter(target_type=kind, target_id=target_id))
        # The type comes first in the index.
        yield newest(rows.filter(target_type__in=audited.types(), target_id=term))

    @column(_("target"))
    def target(self, row: AuditRecord) -> str:
        """Return type and id of the target."""
        return f"{row.target_type}/{row.target_id}"

    @column(_("target"))
    def target_link(self, row: AuditRecord) -> Any:
        """Return the target with a link to its page."""
        found = audited.target_of(row)
        return link(found, self.target(row)) if found else self.target(row)

    @column(_("action"))
    def what(self, row: Any) -> Any:
        """Return what was done, and the beginning of the reason."""
        return above(row.action, row.reason_begins)

    @column(_("run"))
    def run_link(self, row: AuditRecord) -> Any:
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
