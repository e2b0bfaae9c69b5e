"""What people may do to split orders, as the console offers it."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.conf import settings
from django.http import QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from recovery.admin.proposals import (
    Choose,
    Chosen,
    Offer,
    ProposalForm,
    WrongSelectionError,
    by_ids,
    digest_of,
    offer,
)
from splits.actions import Cancel, OrderAction, Recover, Release, Retry, Reverse
from splits.models import OrderStatus, SplitOrder

ALL, STATUS = "all", "status"


def by_status(action: type[OrderAction]) -> Choose:
    """Return a choice by ids, or of all orders whose status the action is for, or of one status."""

    def choose(query: QueryDict, seen_at: datetime) -> Chosen:
        if ALL not in query:
            return by_ids(query, seen_at)
        one = query.getlist(STATUS)
        if not set(one) <= set(action.fitting):
            raise WrongSelectionError
        meant = one or action.fitting
        orders = SplitOrder.objects.filter(status__in=meant)
        ids = list(orders.order_by("id").values_list("pk", flat=True))
        names = dict(OrderStatus.choices)
        text = _("All orders that are: %(status)s")
        status = ", ".join(str(names[OrderStatus(it)]) for it in meant)
        selection = {"all": True, STATUS: ",".join(one)} if one else {"all": True}
        return Chosen(ids, selection, text % {"status": status}, digest_of(ids))

    return choose


def stuck_ones(query: QueryDict, seen_at: datetime) -> Chosen:
    """Return orders by id, or all that were stuck at ``seen_at``."""
    if ALL not in query:
        return by_ids(query, seen_at)
    threshold_s = settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC
    before = seen_at - timedelta(seconds=threshold_s)
    stuck = SplitOrder.objects.in_progress().filter(finalize_progress_at__lt=before)
    ids = list(stuck.order_by("finalize_progress_at").values_list("pk", flat=True))
    return Chosen(ids, {"all": True}, _("All orders that are stuck"))


class RecoverForm(ProposalForm):
    """Whether the order is tried again at once, and whether a young one may be reset."""

    no_retry = forms.BooleanField(
        label=gettext_lazy("Without a retry"),
        help_text=gettext_lazy("It stays ready until an operator starts it again."),
        required=False,
    )
    force = forms.BooleanField(
        label=gettext_lazy("Even if it made progress lately"),
        help_text=gettext_lazy("Also a quarantined one is released."),
        required=False,
    )

    @staticmethod
    def parameters_of(data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the two switches."""
        return {"no_retry": bool(data.get("no_retry")), "force": bool(data.get("force"))}


def switches(query: QueryDict, chosen: Chosen) -> dict[str, Any]:
    """Return the switches as the address sets them."""
    return {name: query.get(name) == "1" for name in ("no_retry", "force")}


def _offer(action: type[OrderAction], title: Any, explanation: Any, **more: Any) -> None:
    more = {"choose": by_status(action), **more}
    offer(Offer(action=action, title=title, explanation=explanation, **more))


_offer(
    Recover,
    gettext_lazy("Recover"),
    gettext_lazy(
        "A finalization that hangs is reset, if no live transaction holds the order: its finalizer"
        " is fenced off for good, the steps that are done stay done, and the next attempt goes on"
        " from the first step not done."
    ),
    choose=stuck_ones,
    form=RecoverForm,
    initial=switches,
    looks_again=True,
    is_proven=True,
)
_offer(
    Retry,
    gettext_lazy("Retry"),
    gettext_lazy("A failed order gets fresh attempts, due at once, from its first step not done."),
)
_offer(
    Release,
    gettext_lazy("Release"),
    gettext_lazy("An order leaves quarantine, ready with fresh counters, due at once."),
)
_offer(
    Cancel,
    gettext_lazy("Cancel order"),
    gettext_lazy("An order that has not moved stock is given up; its lot is free again."),
    is_grave=True,
)
_offer(
    Reverse,
    gettext_lazy("Reverse"),
    gettext_lazy(
        "A finalized order is undone while its child lots are untouched: they are cancelled, the"
        " source lot is available again, and a reversing transaction is posted."
    ),
    choose=by_ids,
    is_grave=True,
)
