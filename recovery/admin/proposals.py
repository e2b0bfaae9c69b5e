"""Recovery actions in the console: see what would change, say why, make a plan of it."""

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, cast

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, InterfaceError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from recovery import actions, plans
from recovery.actions import Action, ActionError
from recovery.admin import audited, evidence
from recovery.admin.operations import ReasonForm
from recovery.admin.secrecy import masked
from recovery.admin.tables import page_of, page_of_key
from recovery.clock import db_now
from recovery.console import page
from recovery.errors import is_infrastructure
from recovery.models import Plan, PlanStatus
from recovery.plans import CANARY, Pace, PlanError, Shown, Wanted

SHOWN_ROWS = 20
LOOKED_AT_ROWS = 900
"""So many rows of a selection a preview judges; the plan judges them all."""
EXPLAINED_ROWS = 5
"""Of so many rows it says who holds them, or who changed them last."""
MOST_IDS = 300
"""More would make an address that servers refuse."""
OLDEST_FORM = timedelta(days=2)
GO = "go"
"""The button that makes the plan; the other one only looks again."""


class WrongSelectionError(ValueError):
    """The address names no rows."""


@dataclass(frozen=True)
class Chosen:
    """The rows that are meant, and how they were chosen."""

    ids: Sequence[int]
    selection: Mapping[str, Any]
    text: str = ""
    """For people; empty: the rows say it."""
    digest: str = ""
    """Of a list that may have other rows once the form is sent; empty: it has no others."""


def digest_of(ids: Sequence[int]) -> str:
    """Return a short name of a list of rows."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


Choose = Callable[[QueryDict, datetime], Chosen]


def by_ids(query: QueryDict, seen_at: datetime) -> Chosen:
    """Return the rows that ``ids=1,2,3`` names; raise WrongSelectionError."""
    words = [it for it in query.get("ids", "").split(",") if it]
    if not words or len(words) > MOST_IDS or not all(it.isdecimal() for it in words):
        raise WrongSelectionError
    ids = sorted({int(it) for it in words if len(it) < 19})
    return Chosen(ids, {"ids": ids})


class ProposalForm(ReasonForm):
    """The reason, and how the plan goes through its rows."""

    paced: ClassVar = ("canary", "rate")
    canary = forms.BooleanField(
        label=gettext_lazy("Try a few first"),
        help_text=gettext_lazy("1, 10, 100 rows, each stage looked at; it halts if they fail."),
        required=False,
    )
    rate = forms.FloatField(
        label=gettext_lazy("Rows a second at most"),
        help_text=gettext_lazy("Empty: as fast as it goes."),
        required=False,
        min_value=0.01,
        max_value=plans.LARGEST_STAGE,
    )
    request_key = forms.CharField(widget=forms.HiddenInput, max_length=64)
    seen_at = forms.DateTimeField(widget=forms.HiddenInput)
    digest = forms.CharField(widget=forms.HiddenInput, required=False, max_length=64)

    def clean_seen_at(self) -> datetime:
        """Return when the preview was made: lately, and not to come."""
        seen_at, now = self.cleaned_data["seen_at"], db_now()
        if not now - OLDEST_FORM < seen_at <= now:
            raise forms.ValidationError(_("This form is too old: open the preview again."))
        return cast("datetime", seen_at)

    @staticmethod
    def parameters_of(data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of the action; raise KeyError where one is not right."""
        return {}

    def pace(self) -> Pace:
        """Return how the plan is to go through its rows."""
        rate = self.cleaned_data.get("rate") or settings.JOB_PLAN_RATE_PER_SEC
        return Pace(rate, CANARY if self.cleaned_data.get("canary") else ())


@dataclass(frozen=True)
class Offer:
    """How an action is offered to people."""

    action: type[Action[Any]]
    title: Any
    """What the button says."""
    explanation: Any
    choose: Choose = by_ids
    form: type[ProposalForm] = ProposalForm
    initial: Callable[[QueryDict, Chosen], dict[str, Any]] = lambda _query, _chosen: {}
    """What the form begins with."""
    advice: Callable[[Mapping[str, Any]], Any] = lambda _before: ""
    """What to think of before, by the state of a row; empty: nothing."""
    is_grave: bool = False
    """It cannot be taken back."""
    looks_again: bool = False
    """The preview depends on what the form says: there is a button to look again."""
    is_judged_at_once: bool = True
    """The preview needs nothing of the form."""
    is_proven: bool = False
    """The preview says whether a live transaction holds a row."""
    also_needs: str = ""
    """A permission beyond that of the action."""
    is_available: Callable[[], bool] = lambda: True

    def is_for(self, user: Any) -> bool:
        """Tell whether ``user`` may propose it."""
        needed = filter(None, (self.action.permission, self.also_needs))
        return self.is_available() and all(user.has_perm(it) for it in needed)


_offers: dict[str, Offer] = {}


def offer(made: Offer) -> None:
    """Let people with the action's permission propose it."""
    _offers[made.action.name] = made


def offers(user: Any, names: Sequence[str]) -> list[Offer]:
    """Return which of these actions ``user`` may propose."""
    found = [_offers[name] for name in names if name in _offers]
    return [it for it in found if it.is_for(user)]


def address(action: type[Action[Any]], **query: Any) -> str:
    """Return the address of the preview of an action on some rows."""
    return f"{reverse('admin:propose', args=[action.name])}?{urlencode(query)}"


def chosen_rows(name: str) -> Callable[..., HttpResponse | None]:
    """Return an action of Django's lists that leads to the preview for the rows ticked."""

    def act(model_admin: Any, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        ids = sorted(queryset.values_list("pk", flat=True)[: MOST_IDS + 1])
        if len(ids) > MOST_IDS:
            text = _("Choose between 1 and %(most)d rows. Nothing has been changed.")
            messages.error(request, text % {"most": MOST_IDS})
            return None
        return HttpResponseRedirect(address(_offers[name].action, ids=",".join(map(str, ids))))

    return act


def list_actions(user: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return these actions for Django's lists, where they are permitted."""
    return {
        it.action.name: (chosen_rows(it.action.name), it.action.name, it.title)
        for it in offers(user, names)
    }


def buttons(user: Any, names: Sequence[str], **query: Any) -> list[dict[str, Any]]:
    """Return buttons that lead to the previews of these actions, where they are permitted."""
    return [
        {"url": address(it.action, **query), "label": it.title, "grave": it.is_grave}
        for it in offers(user, names)
    ]


@dataclass
class Preview:
    """What an action would do to the rows that are meant, as far as was looked."""

    asked: int
    looked_at: int = 0
    fitting: int = 0
    rows: list[Shown] = field(default_factory=list)
    misfits: Counter[str] = field(default_factory=Counter)
    problem: str = ""
    is_judged: bool = False

    def is_partial(self) -> bool:
        """Tell whether there are more rows than were looked at."""
        return self.asked > self.looked_at

    def left_out(self) -> list[tuple[str, int]]:
        """Return why rows are left out, and how many; the most frequent first."""
        return self.misfits.most_common()

    def is_in_vain(self) -> bool:
        """Tell whether it is certain that no row fits."""
        return self.is_judged and not self.fitting and not self.is_partial()


def look(wanted: Wanted) -> Preview:
    """Return what the action would do; changes nothing. Raises ActionError."""
    some = wanted.ids[:LOOKED_AT_ROWS]
    seen = Preview(len(wanted.ids), len(some), is_judged=True)
    elsewhere = plans.waiting_in(wanted.action, some)
    for row in plans.preview(wanted, only=some, told=SHOWN_ROWS):
        shown = _unless_planned(row, elsewhere.get(row.row_id))
        if shown.misfit:
            seen.misfits[shown.misfit] += 1
        else:
            seen.fitting += 1
        if len(seen.rows) < SHOWN_ROWS:
            seen.rows.append(shown)
    return seen


def _unless_planned(shown: Shown, plan_id: int | None) -> Shown:
    """Return the row as left out where another plan is about to do the same to it."""
    if plan_id is None or shown.misfit:
        return shown
    return replace(shown, misfit=_("it waits in plan %(plan)d") % {"plan": plan_id})


@page("actions/<str:name>/", "propose")
def propose(request: HttpRequest, name: str) -> HttpResponse:
    """Show what an action would do to some rows; by POST, make and start a plan of it."""
    if name not in _offers:
        raise Http404
    if not offers(request.user, [name]):
        raise PermissionDenied
    proposal = Proposal(request, _offers[name])
    try:
        return proposal.receive() if request.method == "POST" else proposal.show()
    except WrongSelectionError:
        return proposal.nothing_chosen()


class Proposal:
    """One request about an action on some rows."""

    def __init__(self, request: HttpRequest, made: Offer) -> None:
        """Handle ``request`` for an action as it is offered."""
        self.request, self.offer = request, made
        self.is_proving = made.is_proven
        self.action = actions.get(made.action.name)

    def show(self) -> HttpResponse:
        """Show the preview with an empty form."""
        seen_at = db_now()
        chosen = self.offer.choose(self.request.GET, seen_at)
        initial = {
            "request_key": secrets.token_urlsafe(24),
            "seen_at": seen_at.isoformat(),
            "canary": True,
            "digest": chosen.digest,
            **self.offer.initial(self.request.GET, chosen),
        }
        parameters = (
            self.offer.form.parameters_of(initial) if self.offer.is_judged_at_once else None
        )
        return self._page(chosen, self.offer.form(initial=initial), self._look(chosen, parameters))

    def receive(self) -> HttpResponse:
        """Make the plan that is asked for and start it; once, however often it is asked for."""
        form = self.offer.form(self.request.POST)
        try:
            known = self._made_before()
        except PlanError:
            raise WrongSelectionError from None
        if known:
            return self._known(known)
        is_right = form.is_valid()
        if GO not in self.request.POST:
            form.errors.pop("reason", None)  # who only looks need not say why
        seen_at = form.cleaned_data.get("seen_at") or db_now()
        chosen = self.offer.choose(self.request.GET, seen_at)
        if chosen.digest != form.cleaned_data.get("digest", ""):
            form, is_right = self._form_of_other_rows(chosen), False
        seen = self._look(chosen, _parameters(form))
        if seen.is_in_vain() or not is_right or seen.problem or GO not in self.request.POST:
            # Sent twice at once, the other one may be why: its plan has these rows by now.
            if known := self._made_before():
                return self._known(known)
            return self._page(chosen, form, seen, status=409 if seen.is_in_vain() else 200)
        return self._make(chosen, form, seen)

    def _form_of_other_rows(self, chosen: Chosen) -> ProposalForm:
        """Return the form for the rows there are now, which nobody has seen yet."""
        data = self.request.POST.copy()
        data["digest"] = chosen.digest
        form = self.offer.form(data)
        form.is_valid()
        form.add_error(None, _("These are other rows than before: look at them once more."))
        return form

    def _make(self, chosen: Chosen, form: ProposalForm, seen: Preview) -> HttpResponse:
        wanted = self._wanted(chosen, form)
        try:
            plan = plans.create(wanted)
        except (ActionError, PlanError) as error:
            form.add_error(None, str(error))
            return self._page(chosen, form, seen)
        except (DatabaseError, InterfaceError) as error:
            if not is_infrastructure(error):
                raise
            form.add_error(None, _("The database is busy; nothing has been changed. Try again."))
            return self._page(chosen, form, seen, status=503)
        if self._start(plan):
            self._say(plan, messages.SUCCESS, _("Plan %(plan)d runs: %(rows)s."))
        return HttpResponseRedirect(page_of(plan))

    def _start(self, plan: Plan) -> bool:
        """Start a plan; False: the database was too busy, and the plan's page has the button."""
        try:
            plans.start(plan.pk, actor=self.request.user.get_username())
        except PlanError as error:  # cancelled meanwhile
            messages.error(self.request, str(error))
            return False
        except (DatabaseError, InterfaceError) as error:
            if not is_infrastructure(error):
                raise
            text = _("Plan %(plan)d is made, %(rows)s; the database was too busy to start it.")
            self._say(plan, messages.WARNING, text)
            return False
        return True

    def _made_before(self) -> Plan | None:
        key, actor = self.request.POST.get("request_key"), self.request.user.get_username()
        return plans.of_request(key, action=self.action.name, actor=actor)

    def _known(self, plan: Plan) -> HttpResponse:
        """Lead to the plan that this form has made already."""
        if plan.status == PlanStatus.PLANNED:  # the process died between making and starting it
            self._start(plan)
        self._say(
            plan, messages.WARNING, _("This was sent already: it is plan %(plan)d, %(rows)s.")
        )
        return HttpResponseRedirect(page_of(plan))

    def _say(self, plan: Plan, level: int, text: str) -> None:
        rows = ngettext("%(n)d row", "%(n)d rows", plan.rows_total) % {"n": plan.rows_total}
        messages.add_message(self.request, level, text % {"plan": plan.pk, "rows": rows})

    def _wanted(self, chosen: Chosen, form: ProposalForm) -> Wanted:
        return Wanted(
            self.action.name,
            chosen.ids,
            self.request.user.get_username(),
            form.cleaned_data["reason"],
            form.parameters_of(form.cleaned_data),
            chosen.selection,
            form.pace(),
            form.cleaned_data["request_key"],
        )

    def _look(self, chosen: Chosen, parameters: Mapping[str, Any] | None) -> Preview:
        if parameters is None:
            return Preview(len(chosen.ids))
        actor = self.request.user.get_username()
        try:
            return look(Wanted(self.action.name, chosen.ids, actor, "", parameters))
        except ActionError as error:
            return Preview(len(chosen.ids), problem=str(error))

    def _page(
        self, chosen: Chosen, form: ProposalForm, seen: Preview, *, status: int = 200
    ) -> HttpResponse:
        if not self.action.followed_job or len(chosen.ids) <= CANARY[0]:
            for name in form.paced:
                form.fields.pop(name, None)
        context = {
            "title": self.offer.title,
            "offer": self.offer,
            "chosen": chosen,
            "form": form,
            "seen": seen,
            "rows": [self._row(nth, it) for nth, it in enumerate(seen.rows)],
            "advice": dict.fromkeys(filter(None, (self._advice(it) for it in seen.rows))),
            "back": self._list(),
            "go": GO,
        }
        return _page(self.request, "proposal", context, status=status)

    def _advice(self, shown: Shown) -> Any:
        return "" if shown.misfit else self.offer.advice(shown.before)

    def _list(self) -> str:
        opts = self.action.rows().model._meta
        return reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")

    def _row(self, nth: int, shown: Shown) -> dict[str, Any]:
        """Return a row of the preview: what changes, or why not and who was there before."""
        known: dict[str, Any] = {
            "shown": shown,
            "url": page_of_key(self.action.rows().model, shown.row_id),
            "changes": evidence.changes(shown.before, shown.after),
            "diff": shown.after.get("diff", ()),
        }
        if nth < EXPLAINED_ROWS and shown.misfit:
            target = self.action.target_type, shown.target_id
            known["record"] = audited.newest_record(*target)
        elif nth < EXPLAINED_ROWS and self.is_proving:
            proof = evidence.proof(self.action, shown.row_id)
            # To name a holder takes seconds: after the first one no more are asked for.
            self.is_proving = proof.state == evidence.FREE
            known["proof"] = replace(proof, facts=masked(proof.facts, self.request.user))
        return known

    def nothing_chosen(self) -> HttpResponse:
        """Say that the address names no rows."""
        context = {"title": self.offer.title, "offer": self.offer, "back": self._list()}
        return _page(self.request, "nothing_chosen", context, status=400)


def _parameters(form: ProposalForm) -> dict[str, Any] | None:
    """Return the parameters, if they are right whatever else is not."""
    try:
        return form.parameters_of(form.cleaned_data)
    except KeyError:
        return None


def _page(request: HttpRequest, name: str, context: dict[str, Any], *, status: int) -> HttpResponse:
    site: Any = admin.site
    page: HttpResponse = site.render(request, f"admin/recovery/{name}.html", context, status=status)
    return page
