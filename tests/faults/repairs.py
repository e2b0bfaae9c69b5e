"""Each transition that is audited: staged, driven through the code that makes it, and looked at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from django.core.management import call_command
from django.db.models import Model
from django_q.brokers import get_broker

from ledger import accounts
from ledger import actions as of_entries
from ledger.models import (
    Account,
    DeadLetter,
    OutboxEntry,
    Posting,
    Transaction,
)
from ledger.outbox import JOB as OUTBOX
from ledger.outbox import payload_of
from ledger.rows import DIED, USED_UP
from recovery import pauses, plans, restoring, schedules
from recovery.audit import cli_actor
from recovery.foreground import repair
from recovery.models import ItemStatus, Job, Plan, PlanItem, PlanStatus
from recovery.plans import Pace, Wanted
from recovery.runner import run_job
from splits import audit as of_orders
from splits.audit import Author
from splits.lifecycle import FINALIZE_JOB
from splits.models import FinalizeStep, Lot, OrderStatus, SplitLine, SplitOrder
from splits.restoring import raise_epochs
from tests.factories import SplitOrderFactory, hang
from tests.faults.transitions import ACCOUNT, ENTRY, ITEM, LOT, ORDER, PLAN, WORK
from tests.ledger.entries import into, make_due, put

STUCK_JOB = "recoverFinalizeStuck"
ANNA, WHY = "anna", "INC-7: the cause is mended"
FAILING = "finalize.before_step.validate=raise"

ROWS: tuple[type[Model], ...] = (
    Lot,
    SplitOrder,
    SplitLine,
    FinalizeStep,
    OutboxEntry,
    DeadLetter,
    Account,
    Transaction,
    Posting,
)
PLANS: tuple[type[Model], ...] = (*ROWS, Plan, PlanItem)

CLAIM = frozenset(
    {"finalize_in_progress", "finalize_epoch", "finalize_attempts", "finalize_owner"}
    | {"finalize_started_at", "finalize_progress_at"}
)
"""What the claim of an order, a transaction of its own, has changed before."""
CARRYING = frozenset(
    {"carrier", "carrier_until", "fence", "next_row_at", "stage", "stage_rows", "stage_known"}
    | {"stage_failed", "rows_done"}
)
"""What carrying a plan changes, row by row."""


@dataclass(frozen=True)
class Staged:
    """A transition about to happen."""

    act: Callable[[], Any]
    look: str
    """The SQL that reads the row that changes."""


@dataclass(frozen=True)
class Record:
    """What an audit record must say."""

    action: str
    actor: str
    reason: str
    job: str = ""
    """Whose run it names; empty: nobody's."""
    evidence: tuple[str, ...] = ()
    """What stands there, by name."""


@dataclass(frozen=True)
class Repair:
    """One audited transition, and what it must leave, or leave alone."""

    name: str
    kind: str
    """The heading of its table of states, and there"""
    begins: str
    """one of the states it begins from,"""
    ends: str
    """and what it ends as."""
    stage: Callable[[Any], Staged]
    records: Sequence[Record]
    word: Callable[[Mapping[str, Any]], str]
    """What the tables call a state, of a row as well as of a record."""
    kept: Sequence[type[Model]] = ROWS
    besides: frozenset[str] = frozenset()
    """Columns that the way there changes, in transactions of their own."""
    changes: bool = True

    @property
    def end(self) -> str:
        """Return the state it ends in, without what else has changed."""
        return self.ends.partition(",")[0]


# --- words ---


def status_word(facts: Mapping[str, Any]) -> str:
    """Return the status, or that it is in progress."""
    return "in progress" if facts.get("in_progress") else str(facts.get("status", "(none)"))


def state_word(facts: Mapping[str, Any]) -> str:
    """Return a job's state."""
    return str(facts["state"])


def account_word(facts: Mapping[str, Any]) -> str:
    """Return whether an account is open."""
    return "closed" if facts["closed_at"] else "open"


def always(text: str) -> Callable[[Mapping[str, Any]], str]:
    """Return what calls every state ``text``: that a number has changed has no name."""
    return lambda _facts: text


# --- looks ---


def order_look(order: SplitOrder) -> str:
    return (
        "SELECT status, finalize_in_progress AS in_progress, finalize_attempts"
        f" FROM splits_splitorder WHERE id = {order.pk}"
    )


def entry_look(entry: OutboxEntry) -> str:
    return f"SELECT status, content_hash FROM ledger_outboxentry WHERE id = {entry.pk}"


def plan_look(plan: Plan) -> str:
    return f"SELECT status FROM recovery_plan WHERE id = {plan.pk}"


def job_look(name: str) -> str:
    state = "CASE WHEN paused_at IS NULL THEN 'running' ELSE 'paused' END"
    return f"SELECT {state} AS state FROM recovery_job WHERE name = '{name}'"


# --- stages: orders ---


def commanded(*command: str, look: str) -> Staged:
    """Return the stage of a command, whatever its exit status."""

    def act() -> None:
        with suppress(SystemExit):
            call_command(*command)

    return Staged(act, look)


def failing(settings: Any) -> SplitOrder:
    settings.RECOVERY_FAULTPOINTS = FAILING
    return SplitOrderFactory()


def failing_in_job(settings: Any) -> Staged:
    order = failing(settings)
    return Staged(lambda: run_job(FINALIZE_JOB), order_look(order))


def failing_for_good(settings: Any) -> Staged:
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    return failing_in_job(settings)


def failing_for_good_by_hand(settings: Any) -> Staged:
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    return failing_by_hand(settings)


def failing_by_hand(settings: Any) -> Staged:
    order = failing(settings)
    return commanded("finalize", order.number, look=order_look(order))


def hanging(_settings: Any) -> Staged:
    order = hang(SplitOrderFactory())
    return Staged(lambda: run_job(STUCK_JOB), order_look(order))


def hanging_at_its_last(settings: Any) -> Staged:
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    return hanging(settings)


def hanging_too_often(settings: Any) -> Staged:
    settings.JOB_STUCK_ALERT_THRESHOLD = 0
    return hanging(settings)


def hanging_reset_by_hand(_settings: Any) -> Staged:
    order = hang(SplitOrderFactory())
    command = ("recover_stuck", order.number, "--reason", WHY)
    return commanded(*command, look=order_look(order))


def planned(action: str, row: Model, parameters: Any = None, **pace: Any) -> Plan:
    """Return a plan of one row that runs; the job carries it."""
    wanted = Wanted(action, [row.pk], ANNA, WHY, parameters or {}, pace=Pace(**pace))
    plan = plans.create(wanted)
    assert plan.rows_total == 1, plan.items.get().note
    assert plans.start(plan.pk, actor=ANNA)
    return plan


def carry() -> Any:
    return run_job(plans.JOB)


def order_planned(action: str, at: str, parameters: Any = None) -> Callable[[Any], Staged]:
    def stage(_settings: Any) -> Staged:
        order = SplitOrderFactory(at=at)
        planned(action, order, parameters)
        return Staged(carry, order_look(order))

    return stage


def hanging_planned(_settings: Any) -> Staged:
    order = hang(SplitOrderFactory())
    planned("split.recover", order)
    return Staged(carry, order_look(order))


def reversing(which: str) -> Callable[[Any], Staged]:
    """Return the stage of a reversal that looks at its lots."""

    def stage(_settings: Any) -> Staged:
        order = SplitOrderFactory(at=OrderStatus.FINALIZED)
        planned("split.reverse", order)
        outputs = order.outputs.order_by("pk").values_list("pk", flat=True)
        lot = outputs[0] if which == "outputs" else order.source_lot_id
        return Staged(carry, f"SELECT status FROM splits_lot WHERE id = {lot}")

    return stage


def hanging_at_its_last_planned(settings: Any) -> Staged:
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    return hanging_planned(settings)


def hanging_too_often_planned(settings: Any) -> Staged:
    settings.JOB_STUCK_ALERT_THRESHOLD = 0
    return hanging_planned(settings)


def after_restore(_settings: Any) -> Staged:
    order = SplitOrderFactory()
    author = Author(ANNA, WHY)
    look = f"SELECT finalize_epoch FROM splits_splitorder WHERE id = {order.pk}"
    return Staged(lambda: raise_epochs(restoring.floor(), author=author), look)


# --- stages: entries ---


def refused(settings: Any) -> OutboxEntry:
    """Return an entry whose next attempt is its last one, and fails."""
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 1
    put("stock", into("ELM", "1"))
    assert run_job(OUTBOX).result == {"posted": 1}
    return put("bad", into("ELM", "-5"))


def refused_in_job(settings: Any) -> Staged:
    entry = refused(settings)
    return Staged(lambda: run_job(OUTBOX), entry_look(entry))


def killing(settings: Any) -> Staged:
    entry = refused(settings)
    assert OutboxEntry.objects.filter(pk=entry.pk).charge(delay_s=0, error=DIED)
    make_due()
    return Staged(lambda: run_job(OUTBOX), entry_look(entry))


def dead(settings: Any) -> OutboxEntry:
    entry = refused(settings)
    assert run_job(OUTBOX).result["dead"] == 1
    return entry


def entry_planned(action: str, parameters: Any = None) -> Callable[[Any], Staged]:
    def stage(settings: Any) -> Staged:
        settings.DLQ_EDIT_ENABLED = True
        entry = dead(settings)
        planned(action, entry, parameters)
        return Staged(carry, entry_look(entry))

    return stage


def redriven_by_hand(settings: Any) -> Staged:
    entry = dead(settings)
    command = ("dlq", "redrive", "--id", str(entry.pk), "--reason", WHY)
    return commanded(*command, look=entry_look(entry))


def restoring_discarded(settings: Any) -> Staged:
    entry = dead(settings)
    repair("outbox.discard", [entry.pk], actor=ANNA, reason=WHY)
    planned("outbox.restore", entry)
    return Staged(carry, entry_look(entry))


def failed_canary(settings: Any) -> tuple[OutboxEntry, Plan]:
    """Return an entry whose redrive failed, and the plan that is about to see it."""
    entry = dead(settings)
    plan = planned("outbox.redrive", entry, canary=(1,))
    assert carry().result == {ItemStatus.APPLIED: 1}
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 3
    assert run_job(OUTBOX).result["failed"] == 1
    return entry, plan


def putting_back(settings: Any) -> Staged:
    entry, _plan = failed_canary(settings)
    return Staged(carry, entry_look(entry))


# --- stages: plans ---


def discarding(settings: Any) -> Wanted:
    return Wanted("outbox.discard", [dead(settings).pk], ANNA, WHY)


def creating(look: str) -> Callable[[Any], Staged]:
    def stage(settings: Any) -> Staged:
        wanted = discarding(settings)
        return Staged(lambda: plans.create(wanted), look)

    return stage


def plan_at(settings: Any, status: str) -> Plan:
    """Return a plan that climbed to ``status`` by its real transitions."""
    if status == PlanStatus.HALTED:
        _entry, plan = failed_canary(settings)
        carry()
    else:
        plan = plans.create(discarding(settings))
        if status != PlanStatus.PLANNED:
            assert plans.start(plan.pk, actor=ANNA)
        if status == PlanStatus.PAUSED:
            assert plans.pause(plan.pk, actor=ANNA)
    plan.refresh_from_db()
    assert plan.status == status
    return plan


def asked(verb: Callable[..., Any], at: str) -> Callable[[Any], Staged]:
    def stage(settings: Any) -> Staged:
        plan = plan_at(settings, at)
        return Staged(lambda: verb(plan.pk, actor=ANNA, reason=WHY), plan_look(plan))

    return stage


def finishing(settings: Any) -> Staged:
    return Staged(carry, plan_look(plan_at(settings, PlanStatus.RUNNING)))


def halting(settings: Any) -> Staged:
    _entry, plan = failed_canary(settings)
    return Staged(carry, plan_look(plan))


def item_look(plan: Plan) -> str:
    return f"SELECT status FROM recovery_planitem WHERE plan_id = {plan.pk}"


def undoing(settings: Any) -> Staged:
    _entry, plan = failed_canary(settings)
    return Staged(carry, item_look(plan))


def resuming(settings: Any) -> Staged:
    plan = plan_at(settings, PlanStatus.HALTED)
    return Staged(lambda: plans.resume(plan.pk, actor=ANNA, reason=WHY), item_look(plan))


def resuming_failed(settings: Any) -> Staged:
    staged = resuming(settings)
    assert PlanItem.objects.become(ItemStatus.FAILED)
    return staged


# --- stages: accounts and jobs ---


def account(verb: str) -> Callable[[Any], Staged]:
    def stage(settings: Any) -> Staged:
        refused(settings)
        if verb == "reopen":
            assert Account.objects.filter(code="stock:ELM").close()
        look = "SELECT closed_at FROM ledger_account WHERE code = 'stock:ELM'"
        act = getattr(accounts, verb)
        return Staged(lambda: act("stock:ELM", "m2", actor=ANNA, reason=WHY), look)

    return stage


def job(verb: str) -> Callable[[Any], Staged]:
    def stage(_settings: Any) -> Staged:
        schedules.ensure_rows()
        if verb == "resume":
            assert pauses.pause(OUTBOX, actor=ANNA)
        return commanded("jobs", verb, OUTBOX, "--reason", WHY, look=job_look(OUTBOX))

    return stage


def asked_to_run(_settings: Any) -> Staged:
    schedules.ensure_rows()
    return Staged(lambda: pauses.run_now(OUTBOX, actor=ANNA, reason=WHY), job_look(OUTBOX))


def queued() -> int:
    """Return how many wake-ups wait."""
    return int(get_broker().queue_size())


def fencing(_settings: Any) -> Staged:
    schedules.ensure_rows()
    look = f"SELECT fence FROM recovery_job WHERE name = '{OUTBOX}'"

    def act() -> Any:
        evidence = {"unfinished_orders": 0}
        return restoring.raise_fences(restoring.floor(), actor=ANNA, reason=WHY, evidence=evidence)

    return Staged(act, look)


# --- all of them ---


def by_job(action: str, name: str, reason: str, *evidence: str) -> Record:
    return Record(action, f"system:{name}", reason, name, evidence)


def in_plan(action: str, *evidence: str) -> Record:
    """Return the record of an operator's repair that the job carried out."""
    return Record(action, ANNA, WHY, plans.JOB, ("plan", *evidence))


def by_hand(action: str, *evidence: str) -> Record:
    return Record(action, ANNA, WHY, evidence=evidence)


WHY_STUCK = "no progress"
ATTEMPT = ("code", "error", "attempt")
PROOF = (
    "epoch", "finalizer", "progress_at", "age_s", "threshold_s", "forced", "proof",
    "attempt_charged",
)  # fmt: skip
FAILURE = ("code", "error")
ENTRY_FAILURE = ("event_key", *FAILURE)
OTHER = payload_of(into("ELM", "5"))


def _failures() -> Iterator[Repair]:
    failed = by_job(of_orders.FAILED, FINALIZE_JOB, "an attempt failed", *ATTEMPT)
    limit = by_job(of_orders.RETRY_LIMIT, FINALIZE_JOB, USED_UP, *ATTEMPT, "limit")
    failed_here, limit_here = (replace(it, actor=cli_actor(), job="") for it in (failed, limit))
    for name, to, stage, *records in (
        ("an attempt fails", "ready", failing_in_job, failed),
        ("the last attempt fails", "failed", failing_for_good, failed, limit),
        ("an attempt by hand fails", "ready", failing_by_hand, failed_here),
        ("the last by hand fails", "failed", failing_for_good_by_hand, failed_here, limit_here),
    ):
        yield Repair(name, ORDER, "in progress", to, stage, records, status_word, besides=CLAIM)


def _resets() -> Iterator[Repair]:
    names = (of_orders.RECOVERED, of_orders.RETRY_LIMIT, of_orders.QUARANTINED)
    reset, last, away = (by_job(name, STUCK_JOB, "no progress", *PROOF) for name in names)
    reset_too, last_too, away_too = (in_plan(name, *PROOF) for name in names)
    reset_here = replace(reset_too, actor=cli_actor(), job="")
    for name, to, stage, *records in (
        ("a stuck order is reset", "ready", hanging, reset),
        ("a stuck order is reset by hand", "ready", hanging_reset_by_hand, reset_here),
        ("split.recover", "ready", hanging_planned, reset_too),
        ("a stuck order has no attempt left", "failed", hanging_at_its_last, reset, last),
        ("split.recover at the last", "failed", hanging_at_its_last_planned, reset_too, last_too),
        ("an order hangs too often", "quarantined", hanging_too_often, away),
        ("split.recover too often", "quarantined", hanging_too_often_planned, away_too),
    ):
        yield Repair(name, ORDER, "in progress", to, stage, records, status_word)


def _moves() -> Iterator[Repair]:
    released = in_plan(of_orders.RELEASED, *FAILURE, "recovered_at")
    cancelled = in_plan(of_orders.CANCELLED, "source_lot")
    undone = in_plan(of_orders.REVERSED, "source_lot", "cancelled_lots", "publishes")
    for at, to, action, record, parameters in (
        ("failed", "ready", "split.retry", in_plan(of_orders.RETRIED, *FAILURE), {}),
        ("quarantined", "ready", "split.release", released, {}),
        ("quarantined", "ready", "split.recover", released, {"force": True}),
        *(
            (at, "cancelled", "split.cancel", cancelled, {})
            for at in ("draft", "ready", "failed", "quarantined")
        ),
        ("finalized", "reversed", "split.reverse", undone, {}),
    ):
        stage = order_planned(action, at, parameters)
        yield Repair(f"{action} of {at}", ORDER, at, to, stage, [record], status_word)
    for name, frm, to, which in (
        ("a source lot is restored", "consumed", "available", "source_lot_id"),
        ("child lots are cancelled", "available", "cancelled", "outputs"),
    ):
        yield Repair(name, LOT, frm, to, reversing(which), [undone], status_word)
    yield Repair(
        "epochs are raised", ORDER, "unfinished", "unfinished, epoch raised", after_restore,
        [by_hand(restoring.DATABASE_RESTORED, "raised_to", "orders", "from_id", "to_id")],
        always("unfinished"),
    )  # fmt: skip


def _entries() -> Iterator[Repair]:
    died = by_job(of_entries.DEAD, OUTBOX, USED_UP, *ENTRY_FAILURE)
    redriven = in_plan(of_entries.REDRIVEN, *ENTRY_FAILURE)
    redriven_here = replace(redriven, actor=cli_actor(), job="")
    edited = in_plan(of_entries.EDITED, *ENTRY_FAILURE, "original", "edited", "diff", "redriven")
    given_up = in_plan(of_entries.DISCARDED, *ENTRY_FAILURE)
    restored = in_plan(of_entries.RESTORED, *ENTRY_FAILURE, "holds_back", "later_posted")
    undone = in_plan(of_entries.DEAD, *ENTRY_FAILURE, "put_back")
    for name, frm, to, stage, record in (
        ("an entry dies", "pending", "dead", refused_in_job, died),
        ("an entry that kills workers dies", "pending", "dead", killing, died),
        ("outbox.redrive", "dead", "pending", entry_planned("outbox.redrive"), redriven),
        ("outbox.redrive by hand", "dead", "pending", redriven_by_hand, redriven_here),
        (
            "outbox.edit", "dead", "pending, other content",
            entry_planned("outbox.edit", {"payload": OTHER}), edited,
        ),
        (
            "outbox.edit without redrive", "dead", "dead, other content",
            entry_planned("outbox.edit", {"payload": OTHER, "redrive": False}), edited,
        ),
        ("outbox.discard", "dead", "discarded", entry_planned("outbox.discard"), given_up),
        ("outbox.restore", "discarded", "dead", restoring_discarded, restored),
        ("a failed redrive is put back", "pending", "dead, put back", putting_back, undone),
    ):  # fmt: skip
        yield Repair(name, ENTRY, frm, to, stage, [record], status_word)
    for name, frm, to, verb, action in (
        ("an account is closed", "open", "closed", "close", accounts.CLOSED),
        ("an account is reopened", "closed", "open", "reopen", accounts.REOPENED),
    ):
        record = by_hand(action, "code", "unit", "balance")
        yield Repair(name, ACCOUNT, frm, to, account(verb), [record], account_word)


def _plans() -> Iterator[Repair]:
    made = by_hand(plans.CREATED, "action", "parameters", "selection", "rows", "excluded")
    for kind, to, look in (
        (PLAN, "planned", "SELECT status FROM recovery_plan"),
        (ITEM, "waiting, excluded", "SELECT status FROM recovery_planitem"),
    ):
        yield Repair(
            f"a {kind.lower()} is made", kind, "(none)", to, creating(look), [made],
            status_word, PLANS,
        )  # fmt: skip
    for frm, to, verb, action, *evidence in (
        ("planned", "running", plans.start, plans.STARTED),
        ("running", "paused", plans.pause, plans.PAUSED),
        ("paused", "running", plans.resume, plans.RESUMED, "again"),
        ("halted", "running", plans.resume, plans.RESUMED, "again"),
        *(
            (at, "cancelled", plans.cancel, plans.CANCELLED, "rows")
            for at in ("planned", "running", "paused", "halted")
        ),
    ):
        stage, record = asked(verb, frm), by_hand(action, *evidence)
        yield Repair(f"{action}, {frm} before", PLAN, frm, to, stage, [record], status_word, PLANS)
    for name, to, stage, action, *evidence in (
        ("a plan is finished", "done", finishing, plans.FINISHED, "rows"),
        ("a plan is halted", "halted", halting, plans.HALTED, "rows", "why", "put_back"),
    ):
        record = by_job(action, plans.JOB, WHY, *evidence)
        yield Repair(name, PLAN, "running", to, stage, [record], status_word, (Plan,), CARRYING)
    undone = in_plan(of_entries.DEAD, "put_back")
    again = by_hand(plans.RESUMED, "again")
    for name, frm, to, stage, record, kept in (
        ("a row is undone", "failed", "undone", undoing, undone, ROWS),
        ("an undone row waits again", "undone", "waiting", resuming, again, PLANS),
        ("a failed row waits again", "failed", "waiting", resuming_failed, again, PLANS),
    ):
        yield Repair(name, ITEM, frm, to, stage, [record], status_word, kept)


def _jobs() -> Iterator[Repair]:
    for name, frm, to, stage, action, actor in (
        ("jobs pause", "running", "paused", job("pause"), pauses.PAUSED, cli_actor()),
        ("jobs resume", "paused", "running", job("resume"), pauses.RESUMED, cli_actor()),
        ("run now", "running", "running", asked_to_run, pauses.RUN_REQUESTED, ANNA),
    ):
        record, moves = Record(action, actor, WHY), frm != to
        yield Repair(name, WORK, frm, to, stage, [record], state_word, (Job,), changes=moves)
    yield Repair(
        "fences are raised", WORK, "any", "any, fence raised, lease taken", fencing,
        [by_hand(restoring.DATABASE_RESTORED, "raised_to", "unfinished_orders")],
        always("any"), (Job,),
    )  # fmt: skip


REPAIRS = (*_failures(), *_resets(), *_moves(), *_entries(), *_plans(), *_jobs())
