"""Carry a plan on in this process, for somebody who waits for it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from recovery import carrying, plans, runner
from recovery.carrying import Carrier, Step
from recovery.models import Plan, PlanStatus
from recovery.plans import PlanError, Wanted

LOOK_S = 0.05
NUDGE_AFTER_S = 2.0
"""So long a canary waits for a worker before this process makes the run itself."""

OnRows = Callable[[int], Any]


@dataclass
class Follower:
    """Carries a plan to where it stops, or follows whoever else carries it."""

    plan_id: int
    on_rows: OnRows = lambda _rows: None
    """Called with how many more rows are done."""
    patience_s: float | None = None
    """How long a canary waits for its rows to be tried; None: JOB_PLAN_CANARY_WAIT_SEC."""
    _seen: tuple[int, int, int] = (0, 0, 0)
    _since: float = field(default_factory=time.monotonic)
    """Since when nothing has moved."""
    _nudged: float = 0.0

    def to_its_end(self) -> Plan:
        """Return the plan as it stands once it has stopped; still running: patience is over."""
        carrier: Carrier | None = None
        try:
            while True:
                carrier = carrier or carrying.take(self.plan_id)
                step = self._step(carrier)
                if step is Step.ENDED:
                    carrier = None
                plan = self._told(carrier)
                if plan.status != PlanStatus.RUNNING or self._is_out_of_patience():
                    return plan
                if step is not Step.WORKED:
                    time.sleep(LOOK_S)
        finally:
            if carrier:
                carrier.let_go()

    def _step(self, carrier: Carrier | None) -> Step:
        if carrier is None:
            return Step.WATCHED
        time.sleep(carrier.wait_s())
        step = carrier.step()
        if step is Step.WATCHED:
            self._nudge(carrier)
        return step

    def _told(self, carrier: Carrier | None) -> Plan:
        """Return the plan, as we carry it or as it stands; tell how far it got."""
        plan = carrier.plan if carrier else Plan.objects.get(pk=self.plan_id)
        now = plan.rows_done, plan.stage, plan.stage_known
        if now != self._seen:
            self.on_rows(plan.rows_done - self._seen[0])
            self._seen, self._since = now, time.monotonic()
        return plan

    def _still_s(self) -> float:
        return time.monotonic() - self._since

    def _is_out_of_patience(self) -> bool:
        patience_s = self.patience_s
        if patience_s is None:
            patience_s = settings.JOB_PLAN_CANARY_WAIT_SEC
        return self._still_s() > patience_s

    def _nudge(self, carrier: Carrier) -> None:
        """Make the run ourselves that nobody else seems to make."""
        now = time.monotonic()
        if self._still_s() > NUDGE_AFTER_S and now - self._nudged > NUDGE_AFTER_S:
            self._nudged = now
            runner.run_job(carrier.action.followed_job)


def repair(
    action: str, ids: Iterable[int], *, actor: str, reason: str, parameters: Any = None
) -> Plan:
    """Make a plan of these rows and carry it to its end here; return it.

    Raises PlanError where a row was left out, skipped or failed, and what ``plans.create`` raises.
    """
    wanted = Wanted(action, list(ids), actor, reason, parameters or {})
    plan = plans.create(wanted)
    plans.start(plan.pk, actor=actor, here=True)
    plan = Follower(plan.pk).to_its_end()
    counts = plan.items.counts()
    good = counts.get("done", 0) + counts.get("applied", 0)
    if plan.status != PlanStatus.DONE or good < len(wanted.ids):
        raise PlanError(
            f"plan {plan.pk} is {plan.status}: {counts}; manage.py plans show {plan.pk}"
        )
    return plan
