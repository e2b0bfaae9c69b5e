"""Posted transactions with their postings in the admin."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ledger.admin import origins
from ledger.models import OutboxEntry, Transaction
from ledger.outbox import quantity_text
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.tables import NOTHING, Table, link, moment_of

SHOWN_LINES = 200


@admin.register(Transaction)
class TransactionAdmin(ReadOnlyAdmin):
    """Posted transactions: what the ledger says, for ever."""

    named_by, named_rank = "event_key", 4

    list_display = ("event_key", "event_type", "posted")
    sortable_by = ("posted",)
    search_fields = ("event_key", "id")
    search_help_text = _("Exactly: an event key or an id.")
    fieldsets = (
        (None, {"fields": ("event_key", "event_type", "origin", "entry", "posted")}),
        (_("Content"), {"fields": ("content_hash",)}),
    )
    posted = moment_of(Transaction, "posted_at")

    def tables(self, row: Transaction) -> Iterable[Table]:
        """Return the postings."""
        return (postings_table(row),)

    @column(_("published by"))
    def origin(self, row: Transaction) -> Any:
        """Return what published it."""
        return origins.link_to(row.event_key)

    @column(_("outbox entry"))
    def entry(self, row: Transaction) -> Any:
        """Return the entry it was posted from, as long as that is kept."""
        found = OutboxEntry.objects.defer("payload").filter(event_key=row.event_key).first()
        return link(found) if found else NOTHING


def postings_table(transaction: Transaction) -> Table:
    """Return the postings of a transaction."""
    postings = transaction.postings.order_by("line").prefetch_related("account")
    rows = [
        (it.line, link(it.account, it.account.code), quantity_text(it.quantity), it.account.unit)
        for it in postings[: SHOWN_LINES + 1]
    ]
    note = gettext("The first %(shown)d; the rest is in the database.") % {"shown": SHOWN_LINES}
    return Table(
        title=gettext("Postings"),
        columns=(gettext("Line"), gettext("Account"), gettext("Quantity"), gettext("Unit")),
        rows=rows[:SHOWN_LINES],
        empty=gettext("It has no postings."),
        note=note if len(rows) > SHOWN_LINES else "",
        numeric=frozenset({2}),
    )
