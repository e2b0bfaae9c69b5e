"""Operators' plans in the admin: how far each is, what became of its rows, and its brakes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from recovery import actions, plans
from recovery.actions import Sight
from recovery.admin import audited
from recovery.admin.lists import Choice, ChoiceFilter
from recovery.admin.operations import OperatedAdmin, Operation
from recovery.admin.paging import grouped
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.secrecy import masked
from recovery.admin.tables import (
    NOTHING,
    Table,
    list_of,
    moment_of,
    page_of_key,
    pretty,
    shown,
    state,
)
from recovery.console import Shortcut, shortcut
from recovery.models import ItemStatus, Plan, PlanItem, PlanStatus
from recovery.models.plans import OPEN, STOPPED

SHOWN_ITEMS = 20
REFRESH_S = 2
FATES_OF_ROWS = 500
"""Of so many rows that were only handed on the page asks how they fare."""
LONGEST_ID = 19
GOING_WELL = (ItemStatus.APPLIED, ItemStatus.DONE, ItemStatus.WAITING)
GONE_WRONG = (ItemStatus.FAILED, ItemStatus.UNDONE, ItemStatus.DRIFTED, ItemStatus.HELD)

audited.register(
    plans.TARGET,
    lambda number: Plan.objects.filter(pk=number).first() if number.isdecimal() else None,
    actions=plans.AUDITED,
)

shortcut(
    Shortcut(3, _("Plans"), "playlist_add_check", "recovery_plan_changelist", "recovery.view_plan")
)

START = Operation(
    name="start",
    label=_("Start"),
    explanation=_("The workers begin with its rows."),
    apply=lambda plan, **author: plans.start(plan.pk, **author),
    done=_("Plan %(name)s runs."),
    already=_("Plan %(name)s was started already; nothing has been changed."),
    fits=lambda plan: plan.status == PlanStatus.PLANNED,
    refusals=(plans.PlanError,),
)
PAUSE = Operation(
    name="pause",
    label=_("Pause"),
    explanation=_("It stops after the row at hand; what is done stays done."),
    apply=lambda plan, **author: plans.pause(plan.pk, **author),
    done=_("Plan %(name)s is paused."),
    already=_("Plan %(name)s does not run; nothing has been changed."),
    fits=lambda plan: plan.status == PlanStatus.RUNNING,
)
RESUME = Operation(
    name="resume",
    label=_("Resume"),
    explanation=_(
        "It goes on where it stopped; a halted one begins its first stage again, with the rows"
        " that failed and still fit."
    ),
    apply=lambda plan, **author: plans.resume(plan.pk, **author),
    done=_("Plan %(name)s goes on."),
    already=_("Plan %(name)s does not stand; nothing has been changed."),
    fits=lambda plan: plan.status in STOPPED,
    refusals=(plans.PlanError,),
)
CANCEL = Operation(
    name="cancel",
    label=_("Cancel"),
    explanation=_("It is given up; what is done stays done."),
    apply=lambda plan, **author: plans.cancel(plan.pk, **author),
    done=_("Plan %(name)s is cancelled."),
    already=_("Plan %(name)s has ended; nothing has been changed."),
    fits=lambda plan: plan.status in OPEN,
)


class PlanStatusFilter(ChoiceFilter):
    """By where they stand."""

    title = _("status")
    parameter_name = column = "status"
    values = PlanStatus.choices


@admin.register(Plan)
class PlanAdmin(OperatedAdmin):
    """Plans: who repairs what, why, and how far it is."""

    named_by, named_rank = "id", 8

    operations = (START, PAUSE, RESUME, CANCEL)
    list_display = ("number", "created", "action", "stands", "progress", "who")
    list_filter = (PlanStatusFilter,)
    sortable_by = ("created",)
    search_fields = ("id",)
    search_help_text = _("Exactly: the number of a plan.")
    change_form_template = "admin/recovery/plan.html"
    fieldsets = (
        (None, {"fields": ("action", "stands", "progress", "who", "reason", "note_shown")}),
        (_("Pace"), {"fields": ("stages", "rate_shown", "halts_at", "carried")}),
        (_("Chosen"), {"fields": ("selection_shown", "parameters_shown")}),
        (_("Times"), {"fields": ("created", "started", "finished")}),
    )
    created = moment_of(Plan, "created_at")
    started = moment_of(Plan, "started_at")
    finished = moment_of(Plan, "finished_at")

    def has_operate_permission(self, request: HttpRequest, row: Any = None) -> bool:
        """Tell whether the user may do what the plan does; without a plan: any of it."""
        names = [row.action] if row is not None else [it.name for it in actions.all_actions()]
        known = [actions.get(name) for name in names if actions.has(name)]
        return any(request.user.has_perm(it.permission) for it in known)

    def for_list(self, queryset: Any) -> Any:
        """Read no JSON."""
        return queryset.defer("parameters", "selection", "canary")

    def tables(self, row: Plan) -> Iterable[Table]:
        """Return what became of the rows, and the audit records."""
        yield _counts_table(row)
        yield _items_table(row, gettext("Rows that were not done"), GONE_WRONG)
        yield _items_table(row, gettext("Rows that are done or wait"), GOING_WELL)
        yield _items_table(row, gettext("Rows left out"), (ItemStatus.EXCLUDED,))
        yield audited.records_table(plans.TARGET, str(row.pk))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Refresh the page until the plan has ended and its rows were tried; say if they failed."""
        plan = context["original"]
        plan.fates = _fates_of(plan)
        is_open = plan.status == PlanStatus.RUNNING or plan.fates[Sight.UNKNOWN]
        context |= {"refresh_s": REFRESH_S if is_open else 0, "failed_again": plan.fates[Sight.BAD]}
        return super().render_change_form(request, context, *args, **kwargs)

    @column(_("plan"))
    def number(self, row: Plan) -> str:
        """Return the number."""
        return str(row.pk)

    @column(_("status"))
    def stands(self, row: Plan) -> SafeString:
        """Return where the plan stands."""
        return state(row.status, row.get_status_display())

    @column(_("progress"))
    def progress(self, row: Plan) -> SafeString:
        """Return how many rows are done, of how many."""
        return meter(row.rows_done, row.rows_total)

    @column(_("who"))
    def who(self, row: Plan) -> str:
        """Return who asked for it."""
        return row.actor

    @column(_("note"))
    def note_shown(self, row: Plan) -> Any:
        """Return why it halted."""
        return shown(row.note)

    @column(_("stages"))
    def stages(self, row: Plan) -> str:
        """Return the canary's stages and which one it is at."""
        if not row.canary:
            return gettext("all rows at once")
        sizes = ", ".join(map(str, row.canary))
        facts = {"sizes": sizes, "stage": row.stage + 1, "known": row.stage_known}
        return gettext("%(sizes)s, then the rest; at stage %(stage)d, %(known)d tried") % facts

    @column(_("rate"))
    def rate_shown(self, row: Plan) -> str:
        """Return how many rows a second at most."""
        return gettext("%(n)g rows a second") % {"n": row.rate} if row.rate else gettext("no limit")

    @column(_("halts above"))
    def halts_at(self, row: Plan) -> str:
        """Return the share of failures at which it halts."""
        return f"{row.halt_share:.0%}"

    @column(_("carried by"))
    def carried(self, row: Plan) -> Any:
        """Return which process carries it."""
        return shown(row.carrier.rpartition(":")[0])

    @column(_("chosen by"))
    def selection_shown(self, row: Plan) -> SafeString | str:
        """Return how the rows were chosen."""
        return pretty(row.selection)

    @column(_("parameters"))
    def parameters_shown(self, row: Any) -> SafeString | str:
        """Return what the action was told besides."""
        return pretty(masked(row.parameters, row.reader))


def meter(done: int, total: int) -> SafeString:
    """Return a bar of how much is done, with the numbers beside it."""
    share = 100 * done // total if total else 100
    text = gettext("%(done)s of %(total)s") % {"done": grouped(done), "total": grouped(total)}
    return format_html(
        '<span class="meter" aria-hidden="true"><i style="width:{}%"></i></span> {}', share, text
    )


def _counts_table(plan: Any) -> Table:
    """Return how many rows fared how."""
    counts = plan.items.counts()
    names = dict(ItemStatus.choices)
    rows: list[tuple[Any, Any]] = [
        (state(status, names.get(status, status)), _items_link(plan, status, n))
        for status, n in sorted(counts.items())
    ]
    return Table(
        title=gettext("Rows"),
        columns=(gettext("Status"), gettext("Rows")),
        rows=[*rows, *_fates(plan)],
        empty=gettext("It has no rows."),
        numeric=frozenset({1}),
        more=(list_of(PlanItem, plan=str(plan.pk)), gettext("All rows")),
    )


def _items_link(plan: Plan, status: str, n: int) -> SafeString:
    url = list_of(PlanItem, plan=str(plan.pk), status=status)
    return format_html('<a href="{}">{}</a>', url, grouped(n))


def _fates_of(plan: Plan) -> Counter[Sight]:
    """Return how rows that were handed on without being looked at fare by now, if not too many."""
    if len(plan.items.applied().values("pk")[: FATES_OF_ROWS + 1]) > FATES_OF_ROWS:
        return Counter()
    return Counter(fate.sight for _item, fate in plans.fates(plan))


def _fates(plan: Any) -> Iterable[tuple[Any, Any]]:
    """Yield how many rows fare how by now."""
    texts = {
        Sight.GOOD: state("done", gettext("of those applied: well by now")),
        Sight.BAD: state("failed", gettext("of those applied: failed again")),
        Sight.UNKNOWN: state("pending", gettext("of those applied: not tried yet")),
    }
    for sight, text in texts.items():
        if plan.fates[sight]:
            yield text, grouped(plan.fates[sight])


def _items_table(plan: Plan, title: str, statuses: Sequence[str]) -> Table:
    """Return the first rows that ended so."""
    items = plan.items.filter(status__in=statuses).defer("result").order_by("status", "id")
    target = _model_of(plan)
    return Table(
        title=title,
        columns=(gettext("Row"), gettext("Status"), gettext("Why"), gettext("At")),
        rows=[
            (item_link(it, target), item_state(it), it.note, it.at) for it in items[:SHOWN_ITEMS]
        ],
        empty=gettext("None."),
    )


def _model_of(plan: Plan) -> Any:
    return actions.get(plan.action).rows().model if actions.has(plan.action) else None


def item_link(item: PlanItem, model: Any) -> Any:
    """Return the name of the row with a link to its page."""
    if model is None:
        return item.label
    return format_html('<a href="{}">{}</a>', page_of_key(model, item.row_id), item.label)


def item_state(item: PlanItem) -> SafeString:
    """Return what became of a row."""
    return state(item.status, item.get_status_display())


class OfPlanFilter(ChoiceFilter):
    """By plan: the one that the address names."""

    title = _("plan")
    parameter_name = "plan"
    column = "plan_id"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Choice]:
        """Return the plan that is asked for, if there is one."""
        wanted = request.GET.get("plan", "")
        return [(wanted, wanted)] if wanted.isdecimal() and len(wanted) < LONGEST_ID else []

    def narrowed(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        """Return the rows of the plan, which the index has in the order of the list."""
        return queryset.filter(plan=value)


class ItemStatusFilter(ChoiceFilter):
    """By what became of them."""

    title = _("status")
    parameter_name = column = "status"
    values = ItemStatus.choices

    def narrowed(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        """Return the rows of one status: the index begins with the plan."""
        return queryset.filter(status=value)


@admin.register(PlanItem)
class PlanItemAdmin(ReadOnlyAdmin):
    """Rows of plans."""

    list_display = ("label", "plan_number", "ended", "note", "ended_at")
    list_display_links = None
    list_filter = (OfPlanFilter, ItemStatusFilter)
    search_fields = ("id",)
    fieldsets = (
        (None, {"fields": ("plan", "label", "ended", "note", "ended_at", "result_shown")}),
    )
    ended_at = moment_of(PlanItem, "at")

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the order of the index that serves the filters."""
        if "plan" not in request.GET:
            return ("-id",)
        return ("-plan_id", "-status", "-id") if "status" in request.GET else ("-plan_id", "-id")

    def for_list(self, queryset: Any) -> Any:
        """Read no JSON, and the plans in a statement of their own."""
        return queryset.defer("result").prefetch_related("plan")

    @column(_("plan"))
    def plan_number(self, row: PlanItem) -> SafeString:
        """Return the plan with a link to its page."""
        return format_html('<a href="{}">{}</a>', page_of_key(Plan, row.plan_id), row.plan_id)

    @column(_("status"))
    def ended(self, row: PlanItem) -> SafeString:
        """Return what became of the row."""
        return item_state(row)

    @column(_("result"))
    def result_shown(self, row: Any) -> SafeString | str:
        """Return what the action left."""
        return pretty(masked(row.result, row.reader)) if row.result else NOTHING
