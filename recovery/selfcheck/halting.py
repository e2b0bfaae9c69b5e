"""The limit of ``runRecoveryPlans``: a plan whose rows fail is seen to halt."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import models

from recovery import plans
from recovery.actions import Action, By, RefusedError
from recovery.carrying import Carrier, Step
from recovery.models import ItemStatus, Plan, PlanItem, PlanStatus
from recovery.registry import Limit
from recovery.rehearsing import Rehearsal, UnprovenError

SETTING = "JOB_PLAN_HALT_SHARE"
ROWS = 3
REFUSES = "refuses"


class _Rehearsed(Action[Plan]):
    """Changes nothing, or refuses each row; known to no command."""

    name = "selfcheck"
    summary = "changes nothing, or refuses each row"
    permission = ""
    target_type = plans.TARGET
    audit_action = ""
    parameter_names = (REFUSES,)

    def rows(self) -> models.QuerySet[Plan]:
        return Plan.objects.all()

    def candidates(self, parameters: Mapping[str, Any]) -> models.QuerySet[Plan]:
        return self.rows().none()

    def find(self, keys: Sequence[str]) -> tuple[list[int], list[str]]:
        return [], list(keys)

    def label(self, row: Plan) -> str:
        return str(row.pk)

    def state(self, row: Plan) -> dict[str, Any]:
        return {"status": row.status}

    def misfit(self, row: Plan, parameters: Mapping[str, Any]) -> str:
        return ""

    def becomes(self, row: Plan, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def apply(self, row: Plan, by: By) -> str:
        if by.parameters[REFUSES]:
            raise RefusedError("as selfcheck wants it")
        return "nothing"


def plans_halt(rehearsal: Rehearsal) -> str:
    """Carry a plan whose rows are all refused, and one whose rows are all well."""
    halted = _carried(rehearsal, refuses=True)
    refused = halted.items.filter(status=ItemStatus.FAILED).count()
    seen = f"a plan of {ROWS} rows, {refused} of them refused, was {halted.status}"
    if halted.status != PlanStatus.HALTED or refused == ROWS:
        raise UnprovenError(seen, remedy=f"Set {SETTING} below 1.")
    done = _carried(rehearsal, refuses=False)
    if done.status != PlanStatus.DONE:
        raise UnprovenError(f"a plan whose rows were all well was {done.status}")
    return seen


PLANS_HALT = Limit(SETTING, plans_halt, least=0)


def _carried(rehearsal: Rehearsal, *, refuses: bool) -> Plan:
    action = _Rehearsed()
    plan = Plan.objects.create(
        action=action.name,
        parameters={REFUSES: refuses},
        actor=rehearsal.actor,
        reason=rehearsal.key,
        status=PlanStatus.RUNNING,
        canary=[1],
        halt_share=settings.JOB_PLAN_HALT_SHARE,
        rows_total=ROWS,
    )
    rows = [Plan.objects.create(action=action.name, actor=rehearsal.actor) for _ in range(ROWS)]
    for row in rows:
        PlanItem.objects.create(
            plan=plan, row_id=row.pk, label=action.label(row), fingerprint=action.fingerprint(row)
        )
    this = Plan.objects.filter(pk=plan.pk)
    this.take(rehearsal.key, ttl_s=settings.JOB_LOCK_TTL_SEC)
    plan.refresh_from_db()
    carrier = Carrier(plan, action, recorder=rehearsal.actor)
    while carrier.step() is not Step.ENDED:
        pass
    plan.refresh_from_db()
    return plan
