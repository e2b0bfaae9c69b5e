"""The DLQ in the admin: dead entries by cause, one by one, and what can be done to them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Prefetch
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ledger import dlq
from ledger.actions import Discard, Redrive
from ledger.admin import causes
from ledger.admin.entries import newest_of_aggregate
from ledger.admin.proposals import filter_of, said
from ledger.dlq import Filter, Group
from ledger.models import DeadLetter, ErrorCode, OutboxEntry
from recovery.admin import proposals
from recovery.admin.lists import Choice, ChoiceFilter
from recovery.admin.paging import grouped
from recovery.admin.proposals import WrongSelectionError
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.search import matching
from recovery.admin.tables import (
    NOTHING,
    above,
    link,
    list_of,
    moment_of,
    page_of_key,
    shown,
)
from recovery.console import Shortcut, page, shortcut

SHOWN_GROUPS = 100
SHOWN_ERROR = 160
FILTERS = ("code", "type", "group", "older_than")
MAY_DO = (Redrive.name, Discard.name)


class FilterForm(forms.Form):
    """Which dead entries are shown."""

    code = forms.ChoiceField(
        label=_("Error code"), required=False, choices=[("", _("any")), *ErrorCode.choices]
    )
    type = forms.CharField(label=_("Event type"), required=False, max_length=100)
    older_than = forms.CharField(
        label=_("Published before"), required=False, max_length=20, help_text="15m, 2h, 7d"
    )


shortcut(Shortcut(2, _("Dead letters"), "mail_off", "dlq", "ledger.view_outboxentry"))


@page("dlq/", "dlq", permission="ledger.view_outboxentry")
def dead_letters(request: HttpRequest) -> HttpResponse:
    """Show dead entries by cause, the largest group first."""
    form, wanted, problem = FilterForm(request.GET or None), Filter(), ""
    try:
        wanted = filter_of(request.GET)
    except WrongSelectionError:
        problem = gettext("This filter cannot be read: all dead entries are shown.")
    found = dlq.counted(wanted)
    site: Any = admin.site
    context = {
        "title": gettext("Dead letters"),
        "form": form,
        "problem": problem,
        "total": sum(it[1] for it in found),
        "groups": [_group(request, it) for it in dlq.described(found[:SHOWN_GROUPS])],
        "more_groups": max(0, len(found) - SHOWN_GROUPS),
        "is_filtered": bool(wanted.given()),
        "said": said(wanted),
        "buttons": proposals.buttons(request.user, MAY_DO, **_asked(wanted, request)),
        "discarded": list_of(OutboxEntry, status="discarded"),
    }
    response: HttpResponse = site.render(request, "admin/ledger/dlq.html", context)
    return response


def _asked(wanted: Filter, request: HttpRequest) -> dict[str, str]:
    """Return the filter as an address has it."""
    if not wanted.given():
        return {"all": "1"}
    return {name: request.GET[name] for name in FILTERS if request.GET.get(name)}


def _group(request: HttpRequest, group: Group) -> dict[str, Any]:
    return {
        "group": group,
        "code": dict(ErrorCode.choices).get(group.code, group.code),
        "advice": causes.advice(group.code),
        "count": grouped(group.entries),
        "first": shown(group.first_at),
        "last": shown(group.last_at),
        "list": list_of(DeadLetter, group=group.group),
        "example": page_of_key(OutboxEntry, group.example),
        "buttons": proposals.buttons(request.user, MAY_DO, group=group.group),
    }


class GroupFilter(ChoiceFilter):
    """By cause: the group that the address names."""

    title = _("group")
    parameter_name = column = "group"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Choice]:
        """Return the group that is asked for, by its pattern."""
        wanted = request.GET.get("group", "")
        if not wanted or len(wanted) > dlq.GROUP_LENGTH:
            return []
        known = DeadLetter.objects.filter(group=wanted).order_by().first()
        return [(wanted, f"{known.code}: {known.pattern:.60}" if known else wanted)]


@admin.register(DeadLetter)
class DeadLetterAdmin(ReadOnlyAdmin):
    """Dead entries, the longest dead first within a group."""

    list_display = ("event_key", "died", "published", "attempts", "why")
    list_display_links = None
    list_filter = (GroupFilter,)
    ordering = ("-entry_id",)
    search_fields = ("entry__event_key",)
    search_help_text = _("Exactly: an event key, an aggregate (lot:<board>), an id or a group.")
    died = moment_of(DeadLetter, "died_at")

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the order of the index that serves the filter."""
        if "group" in request.GET:
            return ("-group", "-died_at", "-entry_id")
        return ("-entry_id",)

    def for_list(self, queryset: Any) -> Any:
        """Read the entries in a statement of their own, without payload and long errors."""
        entries = OutboxEntry.objects.defer("payload", "last_error").annotate(
            error_begins=Left("last_error", SHOWN_ERROR)
        )
        return queryset.prefetch_related(Prefetch("entry", queryset=entries))

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Return what may be done to dead entries."""
        return proposals.list_actions(request.user, MAY_DO)

    def matches(self, term: str) -> Iterator[Iterable[Any]]:
        """Yield the entries that ``term`` names."""
        yield from super().matches(term)
        if term.isascii() and term.isdecimal():
            yield matching(DeadLetter, "entry_id", term)
        yield newest_of_aggregate(term)

    @column(_("event key"))
    def event_key(self, row: DeadLetter) -> SafeString:
        """Return the entry with a link to its page."""
        return link(row.entry, row.entry.event_key)

    @column(_("published at"))
    def published(self, row: DeadLetter) -> Any:
        """Return when the entry was published."""
        return shown(row.entry.created_at)

    @column(_("attempts"))
    def attempts(self, row: DeadLetter) -> int:
        """Return how often it was tried."""
        return row.entry.attempts

    @column(_("last error"))
    def why(self, row: Any) -> Any:
        """Return why it could not be posted, and the beginning of the text."""
        return above(row.get_code_display() or NOTHING, row.entry.error_begins)
