"""Outbox entries in the admin; the dead ones are the DLQ."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.contrib import admin
from django.db import connection
from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast, Left
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from ledger import actions
from ledger.admin import causes, origins
from ledger.admin.asked import lines_table
from ledger.models import EntryStatus, ErrorCode, OutboxEntry, Transaction
from recovery.admin import audited, proposals
from recovery.admin.lists import ChoiceFilter
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.search import FOUND_ROWS
from recovery.admin.secrecy import conceal, may_see, withheld
from recovery.admin.tables import (
    NOTHING,
    Table,
    above,
    copyable,
    link,
    list_of,
    long_text,
    moment_of,
    shown,
    state,
)

SHOWN_ERROR = 160
MAY_DO = (actions.Redrive.name, actions.Edit.name, actions.Discard.name)
OF_LIST = (actions.Redrive.name, actions.Discard.name, actions.Restore.name)
PAYLOADS = "ledger.view_payload"

# Of audit records of an edit, of previews and of plans.
conceal("payload", "original", "edited", "diff", permission=PAYLOADS)

audited.register(
    actions.TARGET,
    lambda pk: (
        OutboxEntry.objects.defer("payload").filter(pk=pk).first() if pk.isdecimal() else None
    ),
    actions=actions.AUDITED,
)


class StatusFilter(ChoiceFilter):
    """By where they stand."""

    title = _("status")
    parameter_name = column = "status"
    values = EntryStatus.choices


class ErrorFilter(ChoiceFilter):
    """By why they could not be posted."""

    title = _("last error")
    parameter_name = column = "last_error_code"
    values = ErrorCode.choices


@admin.register(OutboxEntry)
class OutboxEntryAdmin(ReadOnlyAdmin):
    """Outbox entries."""

    named_by, named_rank = "event_key", 2

    list_display = ("event_key", "created", "stands", "attempts", "next_attempt", "reason_start")
    list_filter = (StatusFilter, ErrorFilter)
    sortable_by = ("created",)
    search_fields = ("event_key", "id")
    search_help_text = _("Exactly: an event key, an aggregate (lot:<board>) or an id.")
    fieldsets = (
        (None, {"fields": ("key_shown", "event_type", "aggregate_link", "origin", "transaction")}),
        (
            _("State"),
            {"fields": ("stands", "reason", "what_to_do", "attempts", "next_attempt", "waits_for")},
        ),
        (_("Times"), {"fields": ("created", "posted")}),
        (_("Content"), {"fields": ("payload_shown", "content_hash", "traceparent")}),
    )
    created = moment_of(OutboxEntry, "created_at")
    posted = moment_of(OutboxEntry, "posted_at")

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Return what may be done to the entries that are ticked."""
        return proposals.list_actions(request.user, OF_LIST)

    def buttons(self, request: HttpRequest, row: OutboxEntry) -> Iterable[Mapping[str, Any]]:
        """Return what may be done to the entry."""
        if row.status == EntryStatus.DEAD:
            yield from proposals.buttons(request.user, MAY_DO, ids=row.pk)
        elif row.status == EntryStatus.DISCARDED:
            yield from proposals.buttons(request.user, (actions.Restore.name,), ids=row.pk)

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the order of the index that serves the filters."""
        if "last_error_code" in request.GET:
            return ("-last_error_code", "-id")
        return ("-status", "-created_at", "-id") if "status" in request.GET else self.ordering

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutboxEntry]:
        """Leave payloads alone: another program may have stored what cannot be read."""
        return super().get_queryset(request).defer("payload")

    def for_list(self, queryset: Any) -> Any:
        """Read the beginning of the error."""
        return queryset.defer("payload", "last_error", "content_hash").annotate(
            error_begins=Left("last_error", SHOWN_ERROR)
        )

    def matches(self, term: str) -> Iterator[Iterable[Any]]:
        """Yield what the fields say, and the entries of the aggregate ``term``."""
        yield from super().matches(term)
        yield newest_of_aggregate(term)

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> OutboxEntry | None:
        """Return the entry with its payload as text."""
        row: Any = super().get_object(request, object_id, from_field)
        if row is not None:
            texts = OutboxEntry.objects.annotate(text=Cast("payload", TextField()))
            row.payload_text = texts.values_list("text", flat=True).get(pk=row.pk)
        return row  # type: ignore[no-any-return]

    def tables(self, row: Any) -> Iterable[Table]:
        """Return the postings asked for and the audit records."""
        if may_see(row.reader, PAYLOADS):
            yield lines_table(row.payload_text)
        yield audited.records_table("outbox-entry", str(row.pk))

    @column(_("event key"))
    def key_shown(self, row: OutboxEntry) -> SafeString:
        """Return the event key, to be copied."""
        return copyable(row.event_key)

    @column(_("what to do"))
    def what_to_do(self, row: OutboxEntry) -> Any:
        """Return what usually helps, where the entry is dead."""
        return causes.advice(row.last_error_code) if row.status == EntryStatus.DEAD else NOTHING

    @column(_("status"))
    def stands(self, row: OutboxEntry) -> SafeString:
        """Return where the entry stands."""
        return state(row.status, row.get_status_display())

    @column(_("next attempt at"))
    def next_attempt(self, row: OutboxEntry) -> Any:
        """Return when it is tried next, while it is to be tried."""
        return shown(row.next_attempt_at if row.status == EntryStatus.PENDING else None)

    @column(_("last error"))
    def reason_start(self, row: Any) -> Any:
        """Return why it could not be posted, and the beginning of the text."""
        if not row.last_error_code:
            return NOTHING
        return above(row.get_last_error_code_display(), row.error_begins)

    @column(_("reason"))
    def reason(self, row: OutboxEntry) -> Any:
        """Return why it could not be posted."""
        if not row.last_error_code:
            return NOTHING
        label = row.get_last_error_code_display()
        return format_html("{} ({}){}", label, row.last_error_code, long_text(row.last_error))

    @column(_("aggregate"))
    def aggregate_link(self, row: OutboxEntry) -> SafeString:
        """Return the aggregate with a link to its entries."""
        url = list_of(OutboxEntry, q=row.aggregate)
        return format_html('<a href="{}">{}</a>', url, row.aggregate)

    @column(_("published by"))
    def origin(self, row: OutboxEntry) -> Any:
        """Return what published it."""
        return origins.link_to(row.event_key)

    @column(_("transaction"))
    def transaction(self, row: OutboxEntry) -> Any:
        """Return the transaction of its key."""
        found = Transaction.objects.filter(event_key=row.event_key).first()
        return link(found) if found else NOTHING

    @column(_("waits for"))
    def waits_for(self, row: OutboxEntry) -> Any:
        """Return the first entry of the aggregate that holds this one back."""
        if not row.holds_back():
            return NOTHING
        earlier = OutboxEntry.objects.filter(aggregate=row.aggregate, pk__lt=row.pk)
        heads = [
            earlier.filter(status=status).order_by("id").defer("payload").first()
            for status in (EntryStatus.DEAD, EntryStatus.PENDING)
        ]
        head = min((it for it in heads if it), key=lambda it: it.pk, default=None)
        return format_html("{} {}", link(head), self.stands(head)) if head else NOTHING

    @column(_("payload"))
    def payload_shown(self, row: Any) -> SafeString | str:
        """Return the payload for people, or as it stands if it cannot be read."""
        if not may_see(row.reader, PAYLOADS):
            return withheld(PAYLOADS)
        try:
            text = json.dumps(json.loads(row.payload_text), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            text = row.payload_text
        return long_text(text)


def newest_of_aggregate(aggregate: str) -> list[int]:
    """Return the newest ids of an aggregate, one more a status than lists show.

    Seeks in one statement: the index has the status between aggregate and id.
    """
    sql = " UNION ALL ".join(
        f"SELECT id FROM (SELECT id FROM {OutboxEntry._meta.db_table}"  # noqa: S608 - constants
        f" WHERE aggregate = %s AND status = '{status}'"
        f" ORDER BY id DESC LIMIT {FOUND_ROWS + 1}) AS {status}_ones"
        for status in EntryStatus.values
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [aggregate] * len(EntryStatus.values))
        return [pk for (pk,) in cursor.fetchall()]
