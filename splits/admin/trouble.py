"""Orders that need a person: those in progress, stuck ones first; those given up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from recovery.admin import proposals
from recovery.admin.tables import list_of, page_of, span
from recovery.clock import db_now
from recovery.console import Shortcut, page, shortcut
from splits.actions import Cancel, Recover, Release, Retry
from splits.models import FinalizeStep, OrderStatus, SplitOrder, StepName

SHOWN_ORDERS = 50
REFRESH_S = 5
MAY_SEE = "splits.view_splitorder"


@dataclass(frozen=True)
class Section:
    """Orders in one kind of trouble."""

    name: str
    title: str
    empty: str
    orders: "QuerySet[SplitOrder]"
    may_do: Sequence[str]
    query: dict[str, str]
    """Of the list that shows them all."""


def sections() -> list[Section]:
    """Return the kinds of trouble there are; each is a range of an index."""
    found = SplitOrder.objects.defer("last_finalize_error")
    given_up = found.order_by("id")
    return [
        Section(
            "in_progress",
            _("In progress"),
            _("No order is being finalized."),
            found.in_progress().order_by("finalize_progress_at"),
            (Recover.name,),
            {"finalization": "in_progress"},
        ),
        Section(
            "quarantined",
            _("Quarantined: recovered too often"),
            _("No order is quarantined."),
            given_up.filter(status=OrderStatus.QUARANTINED),
            (Release.name, Cancel.name),
            {"status": OrderStatus.QUARANTINED.value},
        ),
        Section(
            "failed",
            _("Failed: all attempts used up"),
            _("No order has failed."),
            given_up.filter(status=OrderStatus.FAILED),
            (Retry.name, Cancel.name),
            {"status": OrderStatus.FAILED.value},
        ),
    ]


shortcut(Shortcut(1, gettext_lazy("Stuck orders"), "hourglass_disabled", "stuck", MAY_SEE))


@page("stuck/", "stuck", permission=MAY_SEE)
def stuck_orders(request: HttpRequest) -> HttpResponse:
    """Show the orders in progress, the longest without progress first, and those given up."""
    threshold = timedelta(seconds=settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC)
    now = db_now()
    site: Any = admin.site
    context = {
        "title": _("Stuck orders"),
        "sections": [_shown(request, it, now, threshold) for it in sections()],
        "refresh_s": REFRESH_S,
        "threshold": span(threshold),
    }
    response: HttpResponse = site.render(request, "admin/splits/stuck.html", context)
    return response


def _shown(
    request: HttpRequest, section: Section, now: datetime, threshold: timedelta
) -> dict[str, Any]:
    """Return a section as the page shows it: two statements, whatever there is."""
    found = list(section.orders[: SHOWN_ORDERS + 1])
    orders = found[:SHOWN_ORDERS]
    last_steps = _last_steps(orders)
    rows = [_row(request, section, it, last_steps.get(it.pk, 0), now, threshold) for it in orders]
    all_of_them = {"all": 1} | {k: v for k, v in section.query.items() if k == "status"}
    is_offered = bool(rows) and (section.name != "in_progress" or any(it["stuck"] for it in rows))
    return {
        "section": section,
        "rows": rows,
        "is_more": len(found) > SHOWN_ORDERS,
        "list": list_of(SplitOrder, **section.query),
        "buttons": proposals.buttons(request.user, section.may_do, **all_of_them)
        if is_offered
        else [],
    }


def _last_steps(orders: Iterable[SplitOrder]) -> dict[int, int]:
    """Return the last step done of each order, as its place among the steps from 1."""
    done = FinalizeStep.objects.filter(order__in=list(orders)).order_by()
    places = {name.value: nth for nth, name in enumerate(StepName, start=1)}
    last: dict[int, int] = {}
    for order_id, name in done.values_list("order_id", "name"):
        last[order_id] = max(last.get(order_id, 0), places.get(name, 0))
    return last


def _row(
    request: HttpRequest,
    section: Section,
    order: SplitOrder,
    last_step: int,
    now: datetime,
    threshold: timedelta,
) -> dict[str, Any]:
    since = order.finalize_progress_at or order.created_at
    steps = list(StepName)
    is_stuck = order.finalize_in_progress and now - since > threshold
    return {
        "order": order,
        "url": page_of(order),
        "stuck": is_stuck,
        "age": span(now - since),
        "step": steps[last_step - 1].label if last_step else _("none"),
        "steps": f"{last_step}/{len(steps)}",
        "buttons": _buttons(request, section, order, is_stuck=is_stuck),
    }


def _buttons(
    request: HttpRequest, section: Section, order: SplitOrder, *, is_stuck: bool
) -> list[dict[str, Any]]:
    if section.name != "in_progress":
        return proposals.buttons(request.user, section.may_do, ids=order.pk)
    if not is_stuck:
        return []
    again = proposals.buttons(request.user, (Recover.name,), ids=order.pk)
    later = proposals.buttons(request.user, (Recover.name,), ids=order.pk, no_retry=1)
    for it in later:
        it["label"] = _("Recover without a retry")
    return [*again, *later]
