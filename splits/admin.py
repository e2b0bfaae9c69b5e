"""Split orders and lots in Django's admin, to be read."""

from django.contrib import admin

from recovery.admin import ReadOnlyAdmin, ReadOnlyInline
from splits.models import Breaker, FinalizeStep, Lot, SplitLine, SplitOrder


class LineInline(ReadOnlyInline):
    """An order's lines."""

    model = SplitLine
    fields = ("line", "kind", "sku", "quantity")


class StepInline(ReadOnlyInline):
    """An order's steps that are done."""

    model = FinalizeStep
    fields = ("name", "epoch", "completed_at")


@admin.register(SplitOrder)
class SplitOrderAdmin(ReadOnlyAdmin):
    """Split orders with their finalization."""

    list_display = (
        "number",
        "source_lot",
        "status",
        "finalize_in_progress",
        "finalize_attempts",
        "recovery_count",
        "next_finalize_at",
        "last_finalize_error_code",
        "finalized_at",
    )
    list_filter = ("status", "finalize_in_progress")
    list_select_related = ("source_lot",)
    search_fields = ("=number", "=source_lot__code")
    inlines = (LineInline, StepInline)


@admin.register(Lot)
class LotAdmin(ReadOnlyAdmin):
    """Lots."""

    list_display = ("code", "sku", "quantity", "unit", "status", "parent_order", "root_code")
    list_filter = ("status",)
    list_select_related = ("parent_order",)
    search_fields = ("=code", "=sku", "=root_code")


@admin.register(Breaker)
class BreakerAdmin(ReadOnlyAdmin):
    """Completion endpoints and whether they are worth calling."""

    list_display = ("endpoint", "failures", "opened_at", "next_try_at")
