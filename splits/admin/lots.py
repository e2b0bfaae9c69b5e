"""Lots in the admin: who made them, who split them."""

from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ledger.admin import origins
from ledger.models import OutboxEntry
from ledger.outbox import quantity_text
from recovery.admin import audited
from recovery.admin.lists import ChoiceFilter
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.search import matching
from recovery.admin.tables import NOTHING, Table, link, list_of, moment_of, state
from splits.audit import LOT_CORRECTED, LOT_TARGET
from splits.models import Lot, LotStatus, SplitOrder

SHOWN_ORDERS = 50


def lot_of(event_key: str) -> Lot | None:
    """Return the lot whose receipt has this event key."""
    code = event_key.removeprefix("lot:").rpartition(":")[0]
    return Lot.objects.filter(code=code).first()


origins.register("lot", lot_of)
audited.register(
    LOT_TARGET, lambda code: Lot.objects.filter(code=code).first(), actions=(LOT_CORRECTED,)
)


class LotStatusFilter(ChoiceFilter):
    """By whether they can be split."""

    title = _("status")
    parameter_name = column = "status"
    values = LotStatus.choices


@admin.register(Lot)
class LotAdmin(ReadOnlyAdmin):
    """Lots."""

    named_by, named_rank = "code", 3

    list_display = ("code", "sku", "quantity_shown", "stands", "made_by", "root_code", "created")
    list_filter = (LotStatusFilter,)
    sortable_by = ("created",)
    search_fields = ("code", "sku", "root_code", "id")
    search_help_text = _("Exactly: a code, a SKU, a root lot's code or an id.")
    fieldsets = (
        (None, {"fields": ("code", "sku", "quantity_shown", "stands", "created")}),
        (_("Descent"), {"fields": ("made_by", "root_link", "in_ledger")}),
    )
    created = moment_of(Lot, "created_at")

    def for_list(self, queryset: Any) -> Any:
        """Read the orders in a statement of their own: a join could turn the order round."""
        return queryset.prefetch_related("parent_order")

    def matches(self, term: str) -> Iterator[Iterable[Any]]:
        """Yield what the fields say; an aggregate is its root lot's code."""
        yield from super().matches(term)
        if term.startswith("lot:"):
            yield matching(Lot, "root_code", term.removeprefix("lot:"))

    def tables(self, row: Lot) -> Iterable[Table]:
        """Return the orders that split the lot."""
        orders = row.split_orders.order_by("-id")[:SHOWN_ORDERS]
        yield Table(
            title=gettext("Split by"),
            columns=(gettext("Order"), gettext("Status"), gettext("Created"), gettext("Finalized")),
            rows=[(link(it), order_state(it), it.created_at, it.finalized_at) for it in orders],
            empty=gettext("No order splits this lot."),
            more=(list_of(SplitOrder, q=row.code), gettext("All orders of this lot")),
        )

    @column(_("quantity"))
    def quantity_shown(self, row: Lot) -> str:
        """Return quantity and unit."""
        return f"{quantity_text(row.quantity)} {row.unit}"

    @column(_("status"))
    def stands(self, row: Lot) -> SafeString:
        """Return whether the lot can be split."""
        return state(row.status, row.get_status_display())

    @column(_("made by order"))
    def made_by(self, row: Lot) -> Any:
        """Return the order that made the lot; none: it was received."""
        return link(row.parent_order) if row.parent_order else NOTHING

    @column(_("root lot"))
    def root_link(self, row: Lot) -> SafeString:
        """Return the board that was received, with a link to all that came of it."""
        return format_html('<a href="{}">{}</a>', list_of(Lot, q=row.root_code), row.root_code)

    @column(_("ledger"))
    def in_ledger(self, row: Lot) -> SafeString:
        """Return a link to the outbox entries of the lot's root."""
        url = list_of(OutboxEntry, q=row.aggregate)
        return format_html('<a href="{}">{}</a>', url, gettext("Outbox entries of the root lot"))


def order_state(order: SplitOrder) -> SafeString:
    """Return where an order stands; one that is being finalized says so."""
    if order.finalize_in_progress:
        return state("in_progress", gettext("in progress"))
    return state(order.status, order.get_status_display())
