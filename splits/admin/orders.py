"""Split orders in the admin: lines, steps, children, ledger, and all that happened."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db.models import QuerySet
from django.db.models.functions import Left, Now
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ledger.admin import origins
from recovery.admin import audited
from recovery.admin import proposals as offered
from recovery.admin.lists import ChoiceFilter
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.search import matching
from recovery.admin.secrecy import STACK_TRACES, conceal
from recovery.admin.tables import (
    NOTHING,
    Table,
    copyable,
    link,
    long_text,
    moment,
    moment_of,
    shown,
    span,
    state,
)
from splits import audit
from splits.actions import Cancel, Recover, Release, Retry, Reverse
from splits.admin.lots import order_state
from splits.admin.parts import children_table, lines_table, steps_table
from splits.admin.story import Story
from splits.models import OrderStatus, SplitOrder

SHOWN_ERROR = 120
FITTING = {it.name: it.fitting for it in (Retry, Release, Cancel, Reverse)}
MAY_DO = (Recover.name, *FITTING)


def order_of(event_key: str) -> SplitOrder | None:
    """Return the order that published this event key."""
    return SplitOrder.objects.filter(number=number_in(event_key)).first()


def number_in(event_key: str) -> str:
    """Return the number in ``split-order:<number>:<what>``."""
    return event_key.removeprefix("split-order:").rpartition(":")[0]


# Of who holds a row: the statement that is run there, which may hold anything.
conceal("query", permission=STACK_TRACES)
origins.register("split-order", order_of)
audited.register(
    audit.TARGET,
    lambda number: SplitOrder.objects.filter(number=number).first(),
    actions=audit.AUDITED,
)


class OrderStatusFilter(ChoiceFilter):
    """By where they stand."""

    title = _("status")
    parameter_name = column = "status"
    values = OrderStatus.choices


class ProgressFilter(ChoiceFilter):
    """Those being finalized, and those of them that hang."""

    title = _("finalization")
    parameter_name = "finalization"
    values = (("in_progress", _("in progress")), ("stuck", _("stuck")))

    def narrowed(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        """Return the orders in progress, or those without progress for longer than allowed."""
        if value == "stuck":
            stuck: QuerySet[Any] = queryset.stuck(settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC)  # type: ignore[attr-defined]
            return stuck
        in_progress: QuerySet[Any] = queryset.in_progress()  # type: ignore[attr-defined]
        return in_progress


@admin.register(SplitOrder)
class SplitOrderAdmin(ReadOnlyAdmin):
    """Split orders with their finalization."""

    named_by, named_rank = "number", 1

    list_display = (
        "number",
        "created",
        "lot",
        "stands",
        "attempts",
        "recovery_count",
        "next_finalize",
        "error_start",
    )
    list_filter = (OrderStatusFilter, ProgressFilter)
    sortable_by = ("created",)
    search_fields = ("number", "source_lot__code", "id")
    search_help_text = _("Exactly: a number, the code of the lot it splits, an event key or an id.")
    fieldsets = (
        (None, {"fields": ("number_shown", "source_lot", "stands", "created", "finalized")}),
        (
            _("Finalization"),
            {
                "fields": (
                    "progress",
                    "attempts",
                    "next_finalize",
                    "recovery_count",
                    "finalize_epoch",
                    "error",
                    "traceparent",
                )
            },
        ),
    )
    created = moment_of(SplitOrder, "created_at")
    finalized = moment_of(SplitOrder, "finalized_at")
    next_finalize = moment_of(SplitOrder, "next_finalize_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[SplitOrder]:
        """Return the orders with the database's time, by which they are stuck or not."""
        rows: QuerySet[SplitOrder] = super().get_queryset(request).annotate(now=Now())
        return rows

    def for_list(self, queryset: Any) -> Any:
        """Read the beginning of the error, and the lots in a statement of their own."""
        return (
            queryset.defer("last_finalize_error", "recovered_at")
            .annotate(error_begins=Left("last_finalize_error", SHOWN_ERROR))
            .prefetch_related("source_lot")
        )

    def matches(self, term: str) -> Iterator[Iterable[Any]]:
        """Yield what the fields say; an event key or an aggregate stands for its order or lot."""
        yield from super().matches(term)
        if term.startswith("split-order:"):
            yield matching(SplitOrder, "number", number_in(term))
        elif term.startswith("lot:"):
            yield matching(SplitOrder, "source_lot__code", term.removeprefix("lot:"))

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Return what may be done to the orders that are ticked."""
        return offered.list_actions(request.user, MAY_DO)

    def buttons(self, request: HttpRequest, row: Any) -> Iterable[Mapping[str, Any]]:
        """Return what may be done to the order as it stands."""
        names = [Recover.name] if _is_stuck(row) else []
        if not row.finalize_in_progress:
            names += [name for name, fitting in FITTING.items() if row.status in fitting]
        return offered.buttons(request.user, names, ids=row.pk)

    def tables(self, row: Any) -> Iterable[Table]:
        """Return steps, timeline, ledger, lines and child lots."""
        story = Story(row, row.reader)
        return (
            steps_table(story),
            story.timeline(),
            story.ledger(),
            lines_table(row),
            children_table(row),
        )

    @column(_("number"))
    def number_shown(self, row: SplitOrder) -> SafeString:
        """Return the number, to be copied."""
        return copyable(row.number)

    @column(_("source lot"))
    def lot(self, row: SplitOrder) -> SafeString:
        """Return the source lot with a link to its page."""
        return link(row.source_lot)

    @column(_("status"))
    def stands(self, row: Any) -> SafeString:
        """Return where the order stands, and whether it hangs."""
        return state("late", gettext("stuck")) if _is_stuck(row) else order_state(row)

    @column(_("attempts"))
    def attempts(self, row: SplitOrder) -> str:
        """Return the attempts made and how many there may be."""
        return f"{row.finalize_attempts}/{settings.JOB_FINALIZE_RETRY_LIMIT}"

    @column(_("in progress"))
    def progress(self, row: Any) -> Any:
        """Return who finalizes the order, since when, and the age of the last progress."""
        if not row.finalize_in_progress:
            return gettext("no")
        text = gettext("since %(start)s by %(owner)s; last progress %(age)s ago") % {
            "start": moment(row.finalize_started_at),
            "owner": row.finalize_owner,
            "age": span(_age(row)),
        }
        return format_html("{} {}", self.stands(row), text)

    @column(_("last error"))
    def error_start(self, row: Any) -> Any:
        """Return the beginning of the last error."""
        return shown(row.error_begins)

    @column(_("last error"))
    def error(self, row: SplitOrder) -> Any:
        """Return why the last attempt failed."""
        if not row.last_finalize_error_code:
            return NOTHING
        text = long_text(row.last_finalize_error)
        return format_html("{}{}", row.last_finalize_error_code, text)


def _age(row: Any) -> Any:
    return row.now - (row.finalize_progress_at or row.created_at)


def _is_stuck(row: Any) -> bool:
    threshold_s = settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC
    return bool(row.finalize_in_progress and _age(row).total_seconds() > threshold_s)
