"""Operators' plans: freeze a list of rows, start, pause, resume, cancel; each on the record."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from django.conf import settings
from django.db import DatabaseError, IntegrityError, InterfaceError, transaction
from django.utils.translation import gettext as _

from recovery import actions, audit
from recovery.actions import Action, Seen, Target
from recovery.errors import with_retries
from recovery.models import ItemStatus, Plan, PlanItem, PlanStatus
from recovery.models.plans import OPEN
from recovery.wakeups import enqueue, wake_on_commit

logger = logging.getLogger(__name__)

JOB = "runRecoveryPlans"
TARGET = "plan"
CREATED = "plan-created"
PREVIEWED = "plan-previewed"
STARTED = "plan-started"
PAUSED = "plan-paused"
RESUMED = "plan-resumed"
CANCELLED = "plan-cancelled"
HALTED = "plan-halted"
FINISHED = "plan-finished"
AUDITED = (CREATED, PREVIEWED, STARTED, PAUSED, RESUMED, CANCELLED, HALTED, FINISHED)

CANARY = (1, 10, 100)
"""The stages of a canary; the rest follows. (contract, section 8)"""
NAMED = 500
"""So many rows of a plan the log names."""
MOST_STAGES, LARGEST_STAGE = 20, 1_000_000


class PlanError(Exception):
    """The plan cannot be made, or not do this now."""


class UnknownPlanError(PlanError):
    """No such plan."""

    def __init__(self, plan_id: int) -> None:
        """Name the number."""
        super().__init__(f"there is no plan {plan_id}")


@dataclass(frozen=True)
class Pace:
    """How a plan goes through its rows."""

    rate: float = 0
    """Rows a second at most; 0: as fast as it goes."""
    canary: tuple[int, ...] = ()
    """So many rows first, stage by stage, each looked at before the next; empty: no canary."""
    halt_share: float = field(default_factory=lambda: float(settings.JOB_PLAN_HALT_SHARE))
    """It halts once a larger share of a stage's rows fails."""

    def checked(self) -> "Pace":
        """Return itself; raise PlanError."""
        if not 0 <= self.rate <= LARGEST_STAGE:
            raise PlanError("the rate is a number of rows a second, or 0 for no limit")
        if not 0 <= self.halt_share <= 1:
            raise PlanError("the share of failures at which it halts is a number from 0 to 1")
        sizes_fit = all(1 <= size <= LARGEST_STAGE for size in self.canary)
        if not sizes_fit or len(self.canary) > MOST_STAGES:
            raise PlanError(f"a canary has up to {MOST_STAGES} stages, each of 1 row or more")
        return self


@dataclass(frozen=True)
class Wanted:
    """What a plan is to be: the action, its rows, who asks for it and why."""

    action: str
    ids: Sequence[int]
    actor: str
    reason: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)
    """How the rows were chosen, for the record."""
    pace: Pace = field(default_factory=Pace)
    request_key: str | None = None
    """Of the request: the plan of a request that comes twice is made once."""


@dataclass(frozen=True)
class Shown:
    """What one row is, and what the action would make of it."""

    row_id: int
    label: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    """What would change; empty where the row is left out."""
    misfit: str = ""
    """Why it is left out."""
    target_id: str = ""
    """What audit records call it."""


def preview(
    wanted: Wanted, *, only: Sequence[int] | None = None, told: int | None = None
) -> Iterable[Shown]:
    """Yield what would become of each row that is there; changes nothing, keeps nothing.

    ``only``: these of the rows that are wanted; ``told``: of so many of them what would change,
    of the others just whether they fit. Raises UnknownActionError, WrongParametersError,
    RefusedError.
    """
    action = actions.get(wanted.action)
    parameters = action.checked(wanted.parameters)
    chosen, left = frozenset(wanted.ids), math.inf if told is None else told
    for ids in actions.in_chunks(wanted.ids if only is None else only):
        rows = action.at(ids)
        misfits = action.misfits(list(rows.values()), parameters, chosen)
        for pk in ids:
            if pk in rows:
                misfit = misfits.get(pk, "")
                after = {} if misfit or left <= 0 else action.becomes(rows[pk], parameters)
                left -= 1
                yield _shown(action, rows[pk], misfit, after)


def _shown(action: Action[Any], row: Any, misfit: str, after: Mapping[str, Any]) -> Shown:
    state, target_id = action.state(row), action.target_id(row)
    return Shown(row.pk, action.label(row), state, after, misfit, target_id)


def note_preview(wanted: Wanted, *, fitting: int, excluded: int) -> None:
    """Write the one record that a preview leaves."""
    facts = {"parameters": dict(wanted.parameters), "selection": dict(wanted.selection)}
    with transaction.atomic():
        audit.record(
            actor=wanted.actor,
            action=PREVIEWED,
            target_type="action",
            target_id=wanted.action,
            reason=wanted.reason,
            evidence={**facts, "rows": fitting, "excluded": excluded},
        )


def create(wanted: Wanted) -> Plan:
    """Freeze the list: each row with the fingerprint of its state; nothing is repaired yet.

    Rows that the action does not fit are kept as excluded, with the reason. A request that comes
    twice (``request_key``) gets the plan it made. Raises PlanError: no
    reason, a wrong pace; UnknownActionError, WrongParametersError, RefusedError.
    """
    if not wanted.reason.strip():
        raise PlanError("a plan needs a reason: it is kept in each audit record")
    if known := of_request(wanted.request_key, action=wanted.action, actor=wanted.actor):
        return known
    action, pace = actions.get(wanted.action), wanted.pace.checked()
    parameters = action.checked(wanted.parameters)
    try:
        return _told(with_retries(partial(_create, wanted, action, pace, parameters)))
    except IntegrityError:
        # The same request came twice at the same moment, and the other one was first.
        if known := of_request(wanted.request_key, action=wanted.action, actor=wanted.actor):
            return known
        raise


def _told(plan: Plan) -> Plan:
    """Log that a plan was made, by the names of its rows, and return it."""
    facts = {"plan": plan.pk, "action": plan.action, "actor": plan.actor, "rows": plan.rows_total}
    if logger.isEnabledFor(logging.INFO):
        with suppress(DatabaseError, InterfaceError):  # it is made, whether or not this is read
            facts["targets"] = " ".join(_names(plan))
        logger.info("plan_made", extra=facts)
    return plan


def _names(plan: Plan) -> Iterable[str]:
    waiting = PlanItem.objects.filter(plan=plan, status=ItemStatus.WAITING)
    return waiting.order_by("id").values_list("label", flat=True)[:NAMED]


def of_request(request_key: str | None, *, action: str, actor: str) -> Plan | None:
    """Return the plan that a request of this actor has made already, if it has.

    Raises PlanError: the key is that of another action's plan, or of somebody else's.
    """
    plan = Plan.objects.filter(request_key=request_key).first() if request_key else None
    if plan and (plan.action, plan.actor) != (action, actor):
        raise PlanError(_("this form was made for something else: open the preview again"))
    return plan


def _create(wanted: Wanted, action: Action[Any], pace: Pace, parameters: Mapping[str, Any]) -> Plan:
    with transaction.atomic():
        plan = Plan.objects.create(
            action=action.name,
            parameters=dict(parameters),
            selection=dict(wanted.selection),
            actor=wanted.actor,
            reason=wanted.reason.strip(),
            request_key=wanted.request_key,
            rate=pace.rate,
            canary=list(pace.canary),
            halt_share=pace.halt_share,
        )
        chosen = frozenset(wanted.ids)
        for ids in actions.in_chunks(dict.fromkeys(wanted.ids)):
            plan.rows_total += _freeze(plan, action, ids, chosen)
        Plan.objects.filter(pk=plan.pk).update(rows_total=plan.rows_total)
        _record(plan, CREATED, actor=plan.actor, evidence=_facts(plan))
    return plan


def _freeze(plan: Plan, action: Action[Any], ids: Sequence[int], chosen: frozenset[int]) -> int:
    """Keep some rows; return how many the action fits."""
    rows = action.at(ids)
    misfits = action.misfits(list(rows.values()), plan.parameters, chosen)
    items = [_item(plan, action, rows[pk], misfits.get(pk, "")) for pk in ids if pk in rows]
    PlanItem.objects.bulk_create(items)
    return len(items) - len(misfits)


def _item(plan: Plan, action: Action[Any], row: Any, misfit: str) -> PlanItem:
    return PlanItem(
        plan=plan,
        row_id=row.pk,
        label=action.label(row),
        fingerprint=action.fingerprint(row),
        status=ItemStatus.EXCLUDED if misfit else ItemStatus.WAITING,
        note=misfit,
    )


def _facts(plan: Plan) -> dict[str, Any]:
    return {
        "action": plan.action,
        "parameters": plan.parameters,
        "selection": plan.selection,
        "rows": plan.rows_total,
        "excluded": plan.items.filter(status=ItemStatus.EXCLUDED).count(),
        "rate": plan.rate,
        "canary": plan.canary,
        "halt_share": plan.halt_share,
    }


def _record(
    plan: Plan,
    action: str,
    *,
    actor: str,
    reason: str = "",
    evidence: Mapping[str, Any] | None = None,
    after: str = PlanStatus.PLANNED,
) -> None:
    audit.record(
        actor=actor,
        action=action,
        target_type=TARGET,
        target_id=str(plan.pk),
        reason=reason or plan.reason,
        before={} if action == CREATED else {"status": plan.status},
        after={"status": after},
        evidence=evidence,
    )


def _locked(plan_id: int) -> Plan:
    plan = Plan.objects.select_for_update().filter(pk=plan_id).first()
    if plan is None:
        raise UnknownPlanError(plan_id)
    return plan


def start(plan_id: int, *, actor: str, reason: str = "", here: bool = False) -> bool:
    """Let a plan run that was only planned; False: it was started already.

    ``here``: the caller carries it, so that no worker need be woken.
    Raises UnknownPlanError; PlanError: it was cancelled.
    """
    with transaction.atomic():
        plan = _locked(plan_id)
        if plan.status == PlanStatus.CANCELLED:
            raise PlanError(f"plan {plan_id} was cancelled: make a new one")
        if not Plan.objects.filter(pk=plan_id).start():
            return False
        _record(plan, STARTED, actor=actor, reason=reason, after=PlanStatus.RUNNING)
        if not here:
            wake_on_commit(JOB)
    return True


def pause(plan_id: int, *, actor: str, reason: str = "") -> bool:
    """Stop a running plan after the row at hand; False: it does not run.

    Raises UnknownPlanError.
    """
    with transaction.atomic():
        plan = _locked(plan_id)
        if not Plan.objects.filter(pk=plan_id).pause():
            return False
        _record(plan, PAUSED, actor=actor, reason=reason, after=PlanStatus.PAUSED)
    return True


def cancel(plan_id: int, *, actor: str, reason: str = "") -> bool:
    """Give a plan up; what is done stays done. False: it has ended. Raises UnknownPlanError."""
    with transaction.atomic():
        plan = _locked(plan_id)
        if not Plan.objects.filter(pk=plan_id).cancel():
            return False
        counts = PlanItem.objects.filter(plan=plan).counts()
        _record(
            plan,
            CANCELLED,
            actor=actor,
            reason=reason,
            evidence={"rows": counts},
            after=PlanStatus.CANCELLED,
        )
    return True


def resume(plan_id: int, *, actor: str, reason: str = "", here: bool = False) -> bool:
    """Let a paused or halted plan go on; False: it does not stand.

    A halted one begins its canary again, with the rows that failed and still fit, as they are
    now. ``here``: as for ``start``.
    Raises UnknownPlanError; PlanError: it has ended.
    """
    with transaction.atomic():
        plan = _locked(plan_id)
        if plan.has_ended():
            raise PlanError(f"plan {plan_id} is {plan.status}: make a new one")
        halted = plan.status == PlanStatus.HALTED
        if not Plan.objects.filter(pk=plan_id).resume(anew=halted):
            return False
        again = _take_up_failed(plan) if halted else 0
        _record(
            plan,
            RESUMED,
            actor=actor,
            reason=reason,
            evidence={"again": again},
            after=PlanStatus.RUNNING,
        )
        if not here:
            # Whatever the flag says: a tick may have looked just before.
            transaction.on_commit(partial(enqueue, JOB), robust=True)
    return True


def waiting_in(action: str, ids: Sequence[int]) -> dict[int, int]:
    """Return which of these rows wait in a plan of the same action that has not ended: in which."""
    others = Plan.objects.filter(action=action, status__in=OPEN).values_list("pk", flat=True)
    waiting = PlanItem.objects.waiting().filter(plan__in=list(others), row_id__in=ids)
    return dict(waiting.order_by().values_list("row_id", "plan_id"))


def _take_up_failed(plan: Plan) -> int:
    """Let the rows that failed and still fit be tried again; return how many."""
    action = actions.get(plan.action)
    failed = plan.items.filter(status__in=(ItemStatus.FAILED, ItemStatus.UNDONE))
    ids = list(failed.values_list("row_id", flat=True))
    again = 0
    for row in chain.from_iterable(action.at(some).values() for some in actions.in_chunks(ids)):
        if not action.misfit(row, plan.parameters):
            this = plan.items.filter(row_id=row.pk)
            again += this.wait_again(action.fingerprint(row))
    Plan.objects.filter(pk=plan.pk).count_again(again)
    return again


def fates(plan: Plan) -> Iterator[tuple[PlanItem, Seen]]:
    """Yield the rows that were handed on without being looked at, and how they fared by now.

    Nothing where this code does not know the action, or nothing shows how rows fare.
    """
    if not actions.has(plan.action) or not (action := actions.get(plan.action)).followed_job:
        return
    applied, after = PlanItem.objects.filter(plan=plan).applied().order_by("id"), 0
    while items := list(applied.filter(pk__gt=after)[: actions.IDS_AT_ONCE]):
        after = items[-1].pk
        seen = action.look([Target(it.row_id, it.result.get("after") or {}) for it in items])
        yield from ((item, seen[item.row_id]) for item in items)
