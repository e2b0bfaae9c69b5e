"""Carry a plan on: row by row, stage by stage; by a command or by ``runRecoveryPlans``.

One carrier a plan: whoever has its fence. Each row is one transaction that ends by asking for the
fence, so a carrier that was paused, cancelled or overtaken changes nothing more.
"""

import logging
import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction

from recovery import actions, audit, plans
from recovery.actions import Action, By, RefusedError, RowHeldError, Sight, Target
from recovery.clock import db_now
from recovery.errors import is_infrastructure, with_retries
from recovery.faultpoints import faultpoint
from recovery.leases import HOST, LeaseLostError
from recovery.models import AuditRecord, ItemStatus, Plan, PlanItem, PlanStatus, stored_text

logger = logging.getLogger(__name__)

READ_AHEAD = 200
LOOKED_AT = 500
LOOKED_AT_MEANWHILE = 2_000
LOOK_EVERY_S = 1.0
"""So often the rows applied so far are looked at while others are still being done."""
LEAST_KNOWN = 20
"""A share of failures is taken of so many rows at least, but for stages that are smaller."""
CATCH_UP_S = 0.1
"""A row that took long is made up for, by so much at most."""
SHOWN_FAILURE = 300
CHANGED = "changed since the preview"


class Step(StrEnum):
    """What a carrier just did."""

    WORKED = "worked"
    WATCHED = "watched"
    """Rows were applied, and it is not known yet how they fare."""
    ENDED = "ended"
    """The plan is done, halted, paused, cancelled, or carried by somebody else."""


class OvertakenError(Exception):
    """The plan was paused, cancelled or taken over: what is uncommitted is rolled back."""


class _KeptBeforeError(Exception):
    """A COMMIT whose answer was lost has kept the item: what was done again is rolled back."""


@dataclass(frozen=True)
class _Change:
    """What became of one row, to be kept."""

    status: ItemStatus
    note: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def applied(self) -> bool:
        return self.status in (ItemStatus.APPLIED, ItemStatus.DONE)

    def tally(self) -> dict[str, int]:
        """Return by how much it moves the plan's counters."""
        failed = self.status == ItemStatus.FAILED
        known = failed or self.status == ItemStatus.DONE
        return {
            "rows_done": 1,
            "stage_rows": int(self.applied),
            "stage_known": int(known),
            "stage_failed": int(failed),
        }


def take(plan_id: int, **others: Any) -> "Carrier | None":
    """Begin to carry a running plan; None: it does not run, or somebody else carries it.

    A plan whose action this code does not know is left to newer code.
    """
    token = f"{HOST}:{os.getpid()}:{secrets.token_hex(4)}"
    this = Plan.objects.filter(pk=plan_id)
    name = this.values_list("action", flat=True).first()
    if name and not actions.has(name):
        logger.warning("plan_left_to_newer_code", extra={"plan": plan_id, "action": name})
        return None
    with_retries(lambda: this.take(token, ttl_s=settings.JOB_LOCK_TTL_SEC))
    plan = this.filter(carrier=token).first()
    if plan is None:
        return None
    carrier = Carrier(plan, actions.get(plan.action), **others)
    if plan.next_row_at:
        carrier.wait((plan.next_row_at - db_now()).total_seconds())
    return carrier


@dataclass
class Carrier:
    """Carries one plan under one fence."""

    plan: Plan
    action: Action[Any]
    seal: Callable[[], None] = lambda: None
    """Called as the last statement of each transaction: renews a job's lease, or raises."""
    run_id: UUID | None = None
    recorder: str = f"system:{plans.JOB}"
    """Who halts and finishes plans in audit records: nobody asks for it, it follows."""
    counts: Counter[str] = field(default_factory=Counter)
    _ahead: deque[PlanItem] = field(default_factory=deque)
    _next_at: float = 0.0
    _look_at: float = field(default_factory=lambda: time.monotonic() + LOOK_EVERY_S)

    def step(self) -> Step:
        """Do the next row, or look how those done fare. Raises the database's errors."""
        try:
            return self._step()
        except OvertakenError:
            return Step.ENDED

    def let_go(self) -> None:
        """Let another carrier go on at once."""
        Plan.objects.filter(pk=self.plan.pk).let_go(self.plan.fence)

    def wait(self, seconds: float) -> None:
        """Let the next row wait."""
        self._next_at = time.monotonic() + seconds

    def wait_s(self) -> float:
        """Return how long the rate lets the next row wait."""
        return max(0.0, self._next_at - time.monotonic())

    def _step(self) -> Step:
        full = self._stage_is_full()
        item = None if full else self._next()
        if item is None:
            return self._close_stage(last=not full)
        self._do(item)
        if self._look_at <= time.monotonic():
            self._look(most=LOOKED_AT_MEANWHILE)
        return Step.WORKED

    def _stage_is_full(self) -> bool:
        quota = self.plan.quota()
        return quota is not None and self.plan.stage_rows >= quota

    def _refresh(self) -> None:
        """Read the plan anew; raise OvertakenError if it is not to go on under our fence."""
        this = Plan.objects.filter(pk=self.plan.pk).carried_under(self.plan.fence)
        plan = with_retries(this.first)
        if plan is None:
            raise OvertakenError
        self.plan = plan

    def _next(self) -> PlanItem | None:
        if not self._ahead:
            waiting = PlanItem.objects.filter(plan=self.plan).waiting().order_by("id")
            self._ahead.extend(with_retries(lambda: list(waiting[:READ_AHEAD])))
        return self._ahead.popleft() if self._ahead else None

    # --- one row ---

    def _do(self, item: PlanItem) -> None:
        """Do one row; what goes wrong with it alone is kept with it."""
        faultpoint("plan.before_item")
        if self.plan.rate:
            earliest = max(self._next_at, time.monotonic() - CATCH_UP_S)
            self._next_at = earliest + 1 / self.plan.rate
        try:
            change = self._changed(item)
        except RowHeldError:
            change = self._kept_as_held(item)
        faultpoint("plan.after_item")
        if change is None:
            self._refresh()
            return
        self.counts[change.status] += 1
        for name, more in change.tally().items():
            setattr(self.plan, name, getattr(self.plan, name) + more)
        try:
            self.action.settle(item.row_id, change.result)
        except (DatabaseError, InterfaceError) as error:
            facts = {"plan": self.plan.pk, "row": item.label, "error": str(error)}
            logger.warning("plan_row_not_settled", extra=facts)
        if change.status == ItemStatus.FAILED:
            self._judge()

    def _changed(self, item: PlanItem) -> _Change | None:
        """Change one row in one transaction; None: an earlier COMMIT without an answer did.

        Raises RowHeldError.
        """
        pauses = iter(self.action.patience_s)
        while True:
            try:
                return with_retries(partial(self._commit, item))
            except RowHeldError:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                time.sleep(pause_s)
            except RefusedError as refused:
                failed = partial(_Change, ItemStatus.FAILED, str(refused))
                return with_retries(partial(self._keep, item, failed))
            except (OvertakenError, LeaseLostError):
                raise
            except Exception as error:
                # One row's error is not the plan's, unless it is the database's or a stop.
                if is_infrastructure(error):
                    raise
                logger.exception("plan_row_failed", extra=self._facts(item))
                failed = partial(_Change, ItemStatus.FAILED, f"{type(error).__name__}: {error}")
                return with_retries(partial(self._keep, item, failed))

    def _commit(self, item: PlanItem) -> _Change | None:
        return self._keep(item, partial(self._change, item))

    def _keep(self, item: PlanItem, change: Callable[[], _Change]) -> _Change | None:
        try:
            with transaction.atomic():
                return self._kept(item, change())
        except _KeptBeforeError:
            return None

    def _kept(self, item: PlanItem, change: _Change) -> _Change:
        """Note what became of an item that waits; last of all ask whether we may go on."""
        stage = self.plan.stage if change.applied else None
        this = PlanItem.objects.filter(pk=item.pk).waiting()
        if not this.become(change.status, note=change.note, result=change.result, stage=stage):
            raise _KeptBeforeError
        self._hold_on(change.tally())
        return change

    def _hold_on(self, tally: Mapping[str, int] | None = None) -> None:
        this = Plan.objects.filter(pk=self.plan.pk)
        pause_s = max(0.0, self.wait_s()) if tally else 0.0
        ttl_s = settings.JOB_LOCK_TTL_SEC
        if not this.renew(self.plan.fence, ttl_s=ttl_s, tally=tally, pause_s=pause_s):
            raise OvertakenError
        self.seal()

    def _change(self, item: PlanItem) -> _Change:
        row = self.action.lock(item.row_id)
        if row is None:
            return _Change(ItemStatus.DRIFTED, f"{CHANGED}: it is gone")
        if self.action.fingerprint(row) != item.fingerprint:
            return _Change(ItemStatus.DRIFTED, self._drift(row))
        ended = self.action.apply(row, self._by())
        status = ItemStatus.APPLIED if self.action.followed_job else ItemStatus.DONE
        return _Change(status, ended, {"ended": ended, "after": self.action.after(row)})

    def _by(self) -> By:
        plan = self.plan
        return By(plan.actor, plan.reason, plan.parameters, plan.pk, self.run_id)

    def _drift(self, row: Any) -> str:
        """Say what a row is now that changed since the preview, and who changed it."""
        found = AuditRecord.objects.filter(
            target_type=self.action.target_type, target_id=self.action.target_id(row)
        )
        last = found.order_by("-id").first()
        text = f"{CHANGED}: {_summary(self.action.state(row))}"
        if last is None or last.at < self.plan.created_at:
            return text
        return f"{text}; {last.action} by {last.actor} at {_clock(last.at)}"

    def _kept_as_held(self, item: PlanItem) -> _Change | None:
        """Note who holds a row; where nobody does any more, change it after all."""
        holder = self.action.holder(item.row_id)
        if holder is None:
            try:
                return self._changed(item)
            except RowHeldError:
                holder = self.action.holder(item.row_id) or {}
        held = partial(
            _Change, ItemStatus.HELD, "held by another database transaction", {"holder": holder}
        )
        return with_retries(partial(self._keep, item, held))

    def _facts(self, item: PlanItem) -> dict[str, Any]:
        return {"plan": self.plan.pk, "action": self.plan.action, "row": item.label}

    # --- how they fare ---

    def _close_stage(self, *, last: bool) -> Step:
        """Look how the stage's rows fare; go on to the next one, or end."""
        open_ones = self._look()
        if open_ones and self.plan.canary:
            with_retries(self._hold_on)
            return Step.WATCHED
        if last:
            with_retries(self._finish)
            return Step.ENDED
        this = Plan.objects.filter(pk=self.plan.pk)
        with_retries(partial(this.advance, self.plan.fence, stage=self.plan.stage + 1))
        self._refresh()
        return Step.WORKED

    def _look(self, *, most: int | None = None) -> int:
        """Note how applied rows fare, ``most`` of them; return how many of these are still open.

        May halt the plan.
        """
        self._look_at = time.monotonic() + LOOK_EVERY_S
        if not self.action.followed_job:
            return 0
        still_open, after, looked_at = 0, 0, 0
        applied = PlanItem.objects.filter(plan=self.plan).applied().order_by("id")
        while items := list(applied.filter(pk__gt=after)[:LOOKED_AT]):
            after, looked_at = items[-1].pk, looked_at + len(items)
            still_open += len(items) - with_retries(partial(self._note_sights, items))
            if most and looked_at >= most:
                break
        self._judge()
        return still_open

    def _note_sights(self, items: list[PlanItem]) -> int:
        """Note how some rows fare; return of how many it is known now."""
        targets = [Target(it.row_id, it.result.get("after") or {}) for it in items]
        seen = self.action.look(targets)
        good = [it.pk for it in items if seen[it.row_id].sight is Sight.GOOD]
        bad = [it for it in items if seen[it.row_id].sight is Sight.BAD]
        if not good and not bad:
            return 0
        with transaction.atomic():
            known = PlanItem.objects.filter(pk__in=good).seen(ItemStatus.DONE)
            failed = 0
            for item in bad:
                this = PlanItem.objects.filter(pk=item.pk)
                failed += this.seen(ItemStatus.FAILED, seen[item.row_id].note)
            self._hold_on({"stage_known": known + failed, "stage_failed": failed})
        return len(good) + len(bad)

    def _judge(self) -> None:
        """Halt the plan if too large a share of the stage's rows failed and it can go on."""
        self._refresh()
        plan = self.plan
        if not plan.canary and plan.rows_done >= plan.rows_total:
            return
        least = min(plan.quota() or LEAST_KNOWN, max(plan.rows_total, 1))
        if plan.stage_failed > plan.halt_share * max(plan.stage_known, least):
            self._halt()

    def _halt(self) -> None:
        """Put back what failed, then stop the plan on the record."""
        put_back = 0
        failed = PlanItem.objects.filter(plan=self.plan, status=ItemStatus.FAILED)
        for item in failed.exclude(stage=None).order_by("id"):
            put_back += with_retries(partial(self._undone, item))
        with_retries(partial(self._commit_halt, self._why(), put_back))
        raise OvertakenError

    def _undone(self, item: PlanItem) -> int:
        try:
            with transaction.atomic():
                if not self.action.put_back(item.row_id, self._by()):
                    return 0
                PlanItem.objects.filter(pk=item.pk).become(ItemStatus.UNDONE, note=item.note)
                self._hold_on()
        except RowHeldError:  # it is being tried once more
            return 0
        return 1

    def _why(self) -> str:
        plan = self.plan
        failed = plan.items.filter(status__in=(ItemStatus.FAILED, ItemStatus.UNDONE))
        example = failed.order_by("-at", "-id").first()
        text = f"{plan.stage_failed} of {max(plan.stage_known, plan.stage_failed)} failed"
        text += f" in stage {plan.stage + 1}"
        return f"{text}: {example.label}: {example.note:.{SHOWN_FAILURE}}" if example else text

    def _commit_halt(self, why: str, put_back: int) -> None:
        with transaction.atomic():
            if not Plan.objects.filter(pk=self.plan.pk).halt(self.plan.fence, why):
                raise OvertakenError
            self._record(plans.HALTED, PlanStatus.HALTED, {"why": why, "put_back": put_back})
            self.seal()
        logger.error("plan_halted", extra={"plan": self.plan.pk, "code": "halted", "why": why})

    def _finish(self) -> None:
        with transaction.atomic():
            if not Plan.objects.filter(pk=self.plan.pk).finish(self.plan.fence):
                raise OvertakenError
            self._record(plans.FINISHED, PlanStatus.DONE, {})
            self.seal()
        logger.info("plan_finished", extra={"plan": self.plan.pk, "action": self.plan.action})

    def _record(self, action: str, status: str, evidence: Mapping[str, Any]) -> None:
        counts = PlanItem.objects.filter(plan=self.plan).counts()
        audit.record(
            actor=self.recorder,
            action=action,
            target_type=plans.TARGET,
            target_id=str(self.plan.pk),
            reason=self.plan.reason,
            before={"status": PlanStatus.RUNNING},
            after={"status": status},
            evidence={**evidence, "rows": counts},
            run_id=self.run_id,
        )


def _summary(state: Mapping[str, Any]) -> str:
    known = ((name, value) for name, value in state.items() if value not in (None, "", [], {}))
    return stored_text(", ".join(f"{name} {value}" for name, value in known), SHOWN_FAILURE)


def _clock(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
