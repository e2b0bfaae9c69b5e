"""Each transition that is audited: how it is staged, and what its records must say."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Model

from ledger import accounts
from ledger import actions as of_entries
from ledger.models import Account, DeadLetter, OutboxEntry, Posting, Transaction
from ledger.outbox import JOB as OUTBOX
from ledger.outbox import payload_of
from ledger.rows import USED_UP
from recovery import pauses, plans, restoring, retention
from recovery.audit import cli_actor
from recovery.models import AuditArchive, AuditSeal, AuditSealSpan, Job, Plan, PlanItem
from recovery.trail import archiving
from splits import audit as of_orders
from splits import lifecycle
from splits.lifecycle import FINALIZE_JOB
from splits.models import FinalizeStep, Lot, SplitLine, SplitOrder
from tests.faults import stages
from tests.faults.stages import ANNA, STUCK_JOB, WHY, Staged
from tests.faults.transitions import (
    ACCOUNT,
    ENTRY,
    ITEM,
    LOT,
    ORDER,
    PLAN,
    WORK,
)
from tests.faults.transitions import (
    ARCHIVE as OF_ARCHIVES,
)
from tests.ledger.entries import into
from tests.recovery.trail.records import ARCHIVE as ARCHIVER

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


def tier_word(facts: Mapping[str, Any]) -> str:
    """Return an archive's tier."""
    return str(facts["tier"])


def account_word(facts: Mapping[str, Any]) -> str:
    """Return whether an account is open."""
    return "closed" if facts["closed_at"] else "open"


def always(text: str) -> Callable[[Mapping[str, Any]], str]:
    """Return what calls every state ``text``: that a number has changed has no name."""
    return lambda _facts: text


# --- what records say ---


def by_job(action: str, name: str, reason: str, *evidence: str) -> Record:
    return Record(action, f"system:{name}", reason, name, evidence)


def in_plan(action: str, *evidence: str) -> Record:
    """Return the record of an operator's repair that the job carried out."""
    return Record(action, ANNA, WHY, plans.JOB, ("plan", *evidence))


def by_hand(action: str, *evidence: str) -> Record:
    return Record(action, ANNA, WHY, evidence=evidence)


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
        ("an attempt fails", "ready", stages.failing_in_job, failed),
        ("the last attempt fails", "failed", stages.failing_for_good, failed, limit),
        ("an attempt by hand fails", "ready", stages.failing_by_hand, failed_here),
        (
            "the last by hand fails",
            "failed",
            stages.failing_for_good_by_hand,
            failed_here,
            limit_here,
        ),
    ):
        yield Repair(name, ORDER, "in progress", to, stage, records, status_word, besides=CLAIM)


def _resets() -> Iterator[Repair]:
    names = (of_orders.RECOVERED, of_orders.RETRY_LIMIT, of_orders.QUARANTINED)
    reset, last, away = (by_job(name, STUCK_JOB, "no progress", *PROOF) for name in names)
    reset_too, last_too, away_too = (in_plan(name, *PROOF) for name in names)
    reset_here = replace(reset_too, actor=cli_actor(), job="")
    for name, to, stage, *records in (
        ("a stuck order is reset", "ready", stages.hanging, reset),
        ("a stuck order is reset by hand", "ready", stages.hanging_reset_by_hand, reset_here),
        ("split.recover", "ready", stages.hanging_planned, reset_too),
        ("a stuck order has no attempt left", "failed", stages.hanging_at_its_last, reset, last),
        (
            "split.recover at the last",
            "failed",
            stages.hanging_at_its_last_planned,
            reset_too,
            last_too,
        ),
        ("an order hangs too often", "quarantined", stages.hanging_too_often, away),
        ("split.recover too often", "quarantined", stages.hanging_too_often_planned, away_too),
    ):
        yield Repair(name, ORDER, "in progress", to, stage, records, status_word)


def _moves() -> Iterator[Repair]:
    retried = in_plan(of_orders.RETRIED, *FAILURE)
    released = in_plan(of_orders.RELEASED, *FAILURE, "recovered_at")
    cancelled = in_plan(of_orders.CANCELLED, "source_lot")
    undone = in_plan(of_orders.REVERSED, "source_lot", "cancelled_lots", "publishes")
    for at, to, action, record, parameters in (
        ("failed", "ready", "split.retry", retried, {}),
        ("quarantined", "ready", "split.release", released, {}),
        ("quarantined", "ready", "split.recover", released, {"force": True}),
        *(
            (at, "cancelled", "split.cancel", cancelled, {})
            for at in ("draft", "ready", "failed", "quarantined")
        ),
        ("finalized", "reversed", "split.reverse", undone, {}),
    ):
        stage = stages.order_planned(action, at, parameters)
        yield Repair(f"{action} of {at}", ORDER, at, to, stage, [record], status_word)
    for at, to, verb, record in (
        ("failed", "ready", lifecycle.retry, retried),
        ("quarantined", "ready", lifecycle.release, released),
        ("ready", "cancelled", lifecycle.cancel, cancelled),
        ("finalized", "reversed", lifecycle.reverse, undone),
    ):
        alone = by_hand(record.action, *record.evidence[1:])
        name, stage = f"{verb.__name__}, without a plan", stages.moved(verb, at)
        yield Repair(name, ORDER, at, to, stage, [alone], status_word)
    for name, frm, to, which in (
        ("a source lot is restored", "consumed", "available", "source_lot_id"),
        ("child lots are cancelled", "available", "cancelled", "outputs"),
    ):
        yield Repair(name, LOT, frm, to, stages.reversing(which), [undone], status_word)
    corrected = by_hand(of_orders.LOT_CORRECTED, "finding", "order")
    corrected = replace(corrected, actor=cli_actor())
    for name, frm, to, stage in (
        ("a lot is freed that no order consumed", "consumed", "available", stages.freeing),
        ("a lot is consumed that an order had", "available", "consumed", stages.consuming),
    ):
        yield Repair(name, LOT, frm, to, stage, [corrected], status_word)
    yield Repair(
        "epochs are raised", ORDER, "unfinished", "unfinished, epoch raised", stages.after_restore,
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
        ("an entry dies", "pending", "dead", stages.refused_in_job, died),
        ("an entry that kills workers dies", "pending", "dead", stages.killing, died),
        ("outbox.redrive", "dead", "pending", stages.entry_planned("outbox.redrive"), redriven),
        ("outbox.redrive by hand", "dead", "pending", stages.redriven_by_hand, redriven_here),
        (
            "outbox.edit", "dead", "pending, other content",
            stages.entry_planned("outbox.edit", {"payload": OTHER}), edited,
        ),
        (
            "outbox.edit without redrive", "dead", "dead, other content",
            stages.entry_planned("outbox.edit", {"payload": OTHER, "redrive": False}), edited,
        ),
        ("outbox.discard", "dead", "discarded", stages.entry_planned("outbox.discard"), given_up),
        ("outbox.restore", "discarded", "dead", stages.restoring_discarded, restored),
        ("a failed redrive is put back", "pending", "dead, put back", stages.putting_back, undone),
    ):  # fmt: skip
        yield Repair(name, ENTRY, frm, to, stage, [record], status_word)
    for name, frm, to, verb, action in (
        ("an account is closed", "open", "closed", "close", accounts.CLOSED),
        ("an account is reopened", "closed", "open", "reopen", accounts.REOPENED),
    ):
        record = by_hand(action, "code", "unit", "balance")
        yield Repair(name, ACCOUNT, frm, to, stages.account(verb), [record], account_word)

    corrected = by_hand(accounts.CORRECTED, "code", "unit", "postings")
    yield Repair(
        "a balance is corrected", ACCOUNT, "any", "any, the sum of its postings", stages.correcting,
        [replace(corrected, actor=cli_actor())], always("any"),
    )  # fmt: skip


def _plans() -> Iterator[Repair]:
    again = by_hand(plans.RESUMED, "again")
    made = by_hand(plans.CREATED, "action", "parameters", "selection", "rows", "excluded")
    for kind, to, look in (
        (PLAN, "planned", "SELECT status FROM recovery_plan"),
        (ITEM, "waiting, excluded", "SELECT status FROM recovery_planitem"),
    ):
        yield Repair(
            f"a {kind.lower()} is made", kind, "(none)", to, stages.creating(look), [made],
            status_word, PLANS,
        )  # fmt: skip
    for frm, to, verb, record in (
        ("planned", "running", plans.start, by_hand(plans.STARTED)),
        ("running", "paused", plans.pause, by_hand(plans.PAUSED)),
        ("paused", "running", plans.resume, again),
        ("halted", "running", plans.resume, again),
        *(
            (at, "cancelled", plans.cancel, by_hand(plans.CANCELLED, "rows"))
            for at in ("planned", "running", "paused", "halted")
        ),
    ):
        name, stage = f"{record.action}, {frm} before", stages.asked(verb, frm)
        yield Repair(name, PLAN, frm, to, stage, [record], status_word, PLANS)
    done = by_job(plans.FINISHED, plans.JOB, WHY, "rows")
    halted = by_job(plans.HALTED, plans.JOB, WHY, "rows", "why", "put_back")
    for name, to, stage, record in (
        ("a plan is finished", "done", stages.finishing, done),
        ("a plan is halted", "halted", stages.halting, halted),
    ):
        yield Repair(name, PLAN, "running", to, stage, [record], status_word, (Plan,), CARRYING)
    undone = in_plan(of_entries.DEAD, "put_back")
    for name, frm, to, stage, record, kept in (
        ("a row is undone", "failed", "undone", stages.undoing, undone, ROWS),
        ("an undone row waits again", "undone", "waiting", stages.resuming, again, PLANS),
        ("a failed row waits again", "failed", "waiting", stages.resuming_failed, again, PLANS),
    ):
        yield Repair(name, ITEM, frm, to, stage, [record], status_word, kept)


def _jobs() -> Iterator[Repair]:
    for name, frm, to, stage, action, actor in (
        ("jobs pause", "running", "paused", stages.job("pause"), pauses.PAUSED, cli_actor()),
        ("jobs resume", "paused", "running", stages.job("resume"), pauses.RESUMED, cli_actor()),
        ("run now", "running", "running", stages.asked_to_run, pauses.RUN_REQUESTED, ANNA),
    ):
        record, moves = Record(action, actor, WHY), frm != to
        yield Repair(name, WORK, frm, to, stage, [record], state_word, (Job,), changes=moves)
    yield Repair(
        "fences are raised", WORK, "any", "any, fence raised, lease taken", stages.fencing,
        [by_hand(restoring.DATABASE_RESTORED, "raised_to", "unfinished_orders")],
        always("any"), (Job,),
    )  # fmt: skip


def _archives() -> Iterator[Repair]:
    trail: tuple[type[Model], ...] = (AuditArchive, AuditSeal, AuditSealSpan)
    gone = by_job(retention.APPLIED, ARCHIVER, "", "before", "days", "table")
    gone = replace(gone, reason="JOB_RUN_RETENTION_DAYS=7: Runs of jobs.")
    yield Repair("rows past their days", WORK, "there", "gone", stages.expiring, [gone], state_word)
    for name, frm, to, stage, reason in (
        ("a file is in its place", "placing", "written", stages.placing, "AUDIT_HOT_DAYS=90"),
        ("a file is put away", "warm", "cold", stages.putting_away, "AUDIT_WARM_DAYS=100"),
    ):
        record = by_job(archiving.ARCHIVED, ARCHIVER, reason, "sha256")
        word = status_word if to == "written" else tier_word
        yield Repair(name, OF_ARCHIVES, frm, to, stage, [record], word, trail)


REPAIRS = (
    *_failures(), *_resets(), *_moves(), *_entries(), *_plans(), *_jobs(), *_archives(),
)  # fmt: skip
