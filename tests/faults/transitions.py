"""Every transition there is: from, to, by whom, by which verbs, audited as, or why not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ledger import accounts
from ledger import actions as of_entries
from recovery import pauses, plans, restoring, retention
from recovery.trail import archiving
from splits import audit as of_orders

PERSON, JOB = "person", "job"
EITHER = (PERSON, JOB)

ORDER, LOT, ENTRY, ACCOUNT, PLAN, ITEM, WORK, ARCHIVE = (
    "Split order",
    "Lot",
    "Outbox entry",
    "Account",
    "Plan",
    "Row of a plan",
    "Job and run",
    "Audit archive",
)
"""The headings of docs/architecture.md under which the rows stand."""

NORMAL = "the normal path: nothing is repaired"
OWN_RECORD = "the row is its own record: who, when, how it ended"


class Row(NamedTuple):
    """One row of a table of states."""

    kind: str
    begins: str
    ends: str
    by: tuple[str, ...]
    """Whose name a record has: a person's also where a job carries out that person's plan."""
    verbs: tuple[str, ...]
    """What writes it; the name of a queryset's method, or a function of its own."""
    audited: tuple[str, ...] = ()
    why_not: str = ""


_orders = "splits.models.transitions.SplitOrderQuerySet"
_breaker = "splits.models.breaker.BreakerQuerySet"
_lots = "splits.models.lots.LotQuerySet"
_outbox = "ledger.models.OutboxQuerySet"
_accounts = "ledger.models.AccountQuerySet"
_plans = "recovery.models.plans.PlanQuerySet"
_items = "recovery.models.plans.ItemQuerySet"
_jobs = "recovery.models.jobs.JobQuerySet"
_archives = "recovery.models.archives.AuditArchiveQuerySet"
_runs = "recovery.models.jobs.JobRunQuerySet"

TABLE = (
    # --- orders ---
    Row(ORDER, "(none)", "draft", (PERSON,), ("splits.lifecycle._insert",), why_not=NORMAL),
    Row(ORDER, "(none)", "ready", (PERSON,), ("splits.imports.create_received",), why_not=NORMAL),
    Row(ORDER, "draft", "ready", (PERSON,), (f"{_orders}.submit",), why_not=NORMAL),
    Row(ORDER, "ready", "finalized", (JOB,), (f"{_orders}.finish_locked",), why_not=NORMAL),
    Row(
        ORDER, "ready", "ready, four steps done", (JOB,), (f"{_orders}.advance_locked",),
        why_not=NORMAL,
    ),
    Row(ORDER, "ready", "ready, in progress", EITHER, (f"{_orders}.claim",), why_not=NORMAL),
    Row(ORDER, "in progress", "finalized", EITHER, (f"{_orders}.finish",), why_not=NORMAL),
    Row(ORDER, "in progress", "ready", EITHER, (f"{_orders}.fail",), (of_orders.FAILED,)),
    Row(
        ORDER, "in progress", "failed", EITHER, (f"{_orders}.fail",),
        (of_orders.FAILED, of_orders.RETRY_LIMIT),
    ),
    Row(
        ORDER, "in progress", "ready", EITHER, (f"{_orders}.postpone",),
        why_not="its own finalizer gives back what it claimed, uncharged: as if never claimed",
    ),
    Row(ORDER, "in progress", "ready", EITHER, (f"{_orders}.reset",), (of_orders.RECOVERED,)),
    Row(
        ORDER, "in progress", "failed", EITHER, (f"{_orders}.reset",),
        (of_orders.RECOVERED, of_orders.RETRY_LIMIT),
    ),
    Row(
        ORDER, "in progress", "quarantined", EITHER, (f"{_orders}.reset",),
        (of_orders.QUARANTINED,),
    ),
    Row(ORDER, "failed", "ready", (PERSON,), (f"{_orders}.retry",), (of_orders.RETRIED,)),
    Row(ORDER, "quarantined", "ready", (PERSON,), (f"{_orders}.release",), (of_orders.RELEASED,)),
    Row(
        ORDER, "draft, ready, failed, quarantined", "cancelled", (PERSON,), (f"{_orders}.cancel",),
        (of_orders.CANCELLED,),
    ),
    Row(
        ORDER, "finalized", "reversed", (PERSON,), (f"{_orders}.mark_reversed",),
        (of_orders.REVERSED,),
    ),
    Row(
        ORDER, "unfinished", "unfinished, epoch raised", (PERSON,), (f"{_orders}.fence_off",),
        (restoring.DATABASE_RESTORED,),
    ),
    # --- lots, which change with their order ---
    Row(
        LOT, "(none)", "available", EITHER,
        ("splits.imports.receive", "splits.steps.create_outputs", "splits.convoy._take_steps"),
        why_not=NORMAL,
    ),
    Row(LOT, "available", "consumed", EITHER, (f"{_lots}.consume",), why_not=NORMAL),
    Row(LOT, "consumed", "available", (PERSON,), (f"{_lots}.restore",), (of_orders.REVERSED,)),
    Row(LOT, "available", "cancelled", (PERSON,), (f"{_lots}.cancel",), (of_orders.REVERSED,)),
    Row(
        LOT, "available", "cancelled, its receipt reversed", (PERSON,), (f"{_lots}.cancel",),
        why_not="a drill's own boards: drill-started and drill-finished have its name",
    ),
    Row(LOT, "consumed", "available", (PERSON,), (f"{_lots}.correct",), (of_orders.LOT_CORRECTED,)),
    Row(LOT, "available", "consumed", (PERSON,), (f"{_lots}.correct",), (of_orders.LOT_CORRECTED,)),
    # --- outbox entries ---
    Row(
        ENTRY, "(none)", "pending", EITHER, ("ledger.outbox", "ledger.outbox.publish_all"),
        why_not=NORMAL,
    ),
    Row(ENTRY, "pending", "posted", (JOB,), ("ledger.rows.mark_posted",), why_not=NORMAL),
    Row(
        ENTRY, "pending", "pending", (JOB,),
        ("ledger.rows.store_charges", *(
            f"{_outbox}.{verb}" for verb in ("charge", "refund", "park", "unpark", "fast_forward")
        )),
        why_not="backoff and turns: its columns say how often it was tried, and why in vain",
    ),
    Row(ENTRY, "pending", "dead", (JOB,), ("ledger.rows.store_charges",), (of_entries.DEAD,)),
    Row(ENTRY, "dead", "pending", (PERSON,), (f"{_outbox}.redrive",), (of_entries.REDRIVEN,)),
    Row(
        ENTRY, "dead", "pending, other content", (PERSON,),
        (f"{_outbox}.edit", f"{_outbox}.redrive"), (of_entries.EDITED,),
    ),
    Row(
        ENTRY, "dead", "dead, other content", (PERSON,), (f"{_outbox}.edit",), (of_entries.EDITED,)
    ),
    Row(ENTRY, "dead", "discarded", (PERSON,), (f"{_outbox}.discard",), (of_entries.DISCARDED,)),
    Row(ENTRY, "discarded", "dead", (PERSON,), (f"{_outbox}.restore",), (of_entries.RESTORED,)),
    Row(
        ENTRY, "pending", "dead, put back", (PERSON,), (f"{_outbox}.put_back",), (of_entries.DEAD,)
    ),
    # --- accounts ---
    Row(ACCOUNT, "(none)", "open", (JOB,), ("ledger.rows.make_accounts",), why_not=NORMAL),
    Row(ACCOUNT, "open", "closed", (PERSON,), (f"{_accounts}.close",), (accounts.CLOSED,)),
    Row(ACCOUNT, "closed", "open", (PERSON,), (f"{_accounts}.reopen",), (accounts.REOPENED,)),
    Row(
        ACCOUNT, "any", "any, the sum of its postings", (PERSON,), (f"{_accounts}.correct",),
        (accounts.CORRECTED,),
    ),
    # --- plans ---
    Row(PLAN, "(none)", "planned", (PERSON,), ("recovery.plans._create",), (plans.CREATED,)),
    Row(PLAN, "planned", "running", (PERSON,), (f"{_plans}.start",), (plans.STARTED,)),
    Row(PLAN, "running", "paused", (PERSON,), (f"{_plans}.pause",), (plans.PAUSED,)),
    Row(PLAN, "running", "halted", (JOB,), (f"{_plans}.halt",), (plans.HALTED,)),
    Row(PLAN, "paused, halted", "running", (PERSON,), (f"{_plans}.resume",), (plans.RESUMED,)),
    Row(PLAN, "running", "done", (JOB,), (f"{_plans}.finish",), (plans.FINISHED,)),
    Row(
        PLAN, "planned, running, paused, halted", "cancelled", (PERSON,), (f"{_plans}.cancel",),
        (plans.CANCELLED,),
    ),
    # --- their rows ---
    Row(
        ITEM, "(none)", "waiting, excluded", (PERSON,), ("recovery.plans._freeze",),
        (plans.CREATED,),
    ),
    Row(
        ITEM, "waiting", "applied, done", (JOB,), (f"{_items}.become",),
        why_not="what it did to its row has that row's record, in the same transaction",
    ),
    Row(
        ITEM, "waiting", "failed, drifted, held", (JOB,), (f"{_items}.become",),
        why_not="nothing was changed; plan-finished and plan-halted have how many",
    ),
    Row(
        ITEM, "applied", "done, failed", (JOB,), (f"{_items}.seen",),
        why_not="something was seen, nothing changed",
    ),
    Row(ITEM, "failed", "undone", (PERSON,), (f"{_items}.become",), (of_entries.DEAD,)),
    Row(
        ITEM, "failed, undone", "waiting", (PERSON,),
        (f"{_items}.wait_again", f"{_plans}.count_again"), (plans.RESUMED,),
    ),
    # --- jobs and runs ---
    Row(WORK, "running", "paused", (PERSON,), (f"{_jobs}.pause",), (pauses.PAUSED,)),
    Row(WORK, "running", "running", (PERSON,), (), (pauses.RUN_REQUESTED,)),
    Row(WORK, "paused", "running", (PERSON,), (f"{_jobs}.resume",), (pauses.RESUMED,)),
    Row(
        WORK, "any", "any, fence raised, lease taken", (PERSON,), (f"{_jobs}.fence_off",),
        (restoring.DATABASE_RESTORED,),
    ),
    Row(WORK, "(none)", "running", (JOB,), ("recovery.runner._open",), why_not=OWN_RECORD),
    Row(WORK, "running", "ok, failed", (JOB,), (f"{_runs}.finish",), why_not=OWN_RECORD),
    Row(WORK, "running", "died", (JOB,), (f"{_runs}.bury",), why_not=OWN_RECORD),
    Row(WORK, "there", "gone", (JOB,), ("recovery.retention._delete",), (retention.APPLIED,)),
    # --- archives of audit records ---
    Row(
        ARCHIVE, "(none)", "placing", (JOB,), ("recovery.trail.archiving._note",),
        why_not="nothing has left the table: the file is not in its place",
    ),
    Row(
        ARCHIVE, "placing", "(none)", (JOB,), ("recovery.trail.archiving._forget.attempt",),
        why_not="nothing had left the table",
    ),
    Row(
        ARCHIVE, "placing", "written", (JOB,), (f"{_archives}.mark_written",),
        (archiving.ARCHIVED,),
    ),
    Row(
        ARCHIVE, "written", "done", (JOB,), (f"{_archives}.mark_done",),
        why_not="audit-archived has said which rows go",
    ),
    Row(ARCHIVE, "warm", "cold", (JOB,), (f"{_archives}.put_away",), (archiving.ARCHIVED,)),
)  # fmt: skip

NO_STATE = {
    "ledger.dlq.file": "files the dead by cause, in the transaction of the death",
    "ledger.dlq.take_out": "the same, in the transaction of the repair",
    "ledger.rows.change_balances": "the sums of postings",
    "ledger.rows.insert_postings": "the ledger is added to",
    "ledger.rows.insert_transactions": "the ledger is added to",
    "ledger.rows.store_balances": "the sums of postings",
    "ledger.selfcheck.entries_die": "rolled back",
    "recovery.audit.record": "the record itself",
    "recovery.broker.TableRung.enqueue": "the queue of wake-ups",
    "recovery.broker.TableRung.take": "the queue of wake-ups",
    "recovery.history.keep": "samples",
    "recovery.metrics.store": "samples",
    "recovery.models.records.AppendOnly.save": "adds, never changes",
    f"{_jobs}.acquire": "the lease",
    f"{_jobs}.ask_to_wake": "a wake-up",
    f"{_jobs}.beat": "the heartbeat",
    f"{_jobs}.clear_wake": "a wake-up",
    f"{_jobs}.make": "rows of jobs that are new",
    f"{_jobs}.release": "the lease",
    f"{_jobs}.renew": "the lease",
    f"{_plans}.advance": "how far it got",
    f"{_plans}.let_go": "who carries it",
    f"{_plans}.renew": "who carries it",
    f"{_plans}.take": "who carries it",
    "recovery.models.archives.RestoredRecordQuerySet.bring": "copies; audit-restored has them",
    f"{_archives}.undouble": "the file is gone from where it was copied from",
    "recovery.models.seals.AuditSealQuerySet.file_under": "which file has its records",
    "recovery.models.seals.AuditSealQuerySet.keep_gaps": "what the next seal looks for",
    "recovery.models.seals.AuditSealQuerySet.take_back": "which file has its records",
    "recovery.trail.copies.take_away": "copies; audit-restored has them",
    "recovery.trail.seals._make": "the seal is its own record",
    "recovery.trail.stores.Store.place": "a file",
    "recovery.roles.grant": "permissions that migrate grants",
    "recovery.schedules._mend_one": "ticks, made from the registry",
    "recovery.schedules.mend": "ticks, made from the registry",
    "recovery.schedules.pull_back": "ticks, made from the registry",
    "recovery.selfcheck.halting._carried": "rolled back",
    "splits.cutplans._OrderNumbers.note": "a table of its own, in memory",
    "splits.drills.cases.slow_webhook._endpoint": "the breaker of the drill's own endpoint",
    "splits.finalize._commit_step": "a step that is done",
    "splits.lifecycle.create_order": "an order's lines",
    "splits.management.commands.demo.ensure_admin": "the demo's user",
    f"{_breaker}.close": "whether the endpoint is worth a call",
    f"{_breaker}.count_failure": "whether the endpoint is worth a call",
    f"{_breaker}.open_after": "whether the endpoint is worth a call",
    f"{_breaker}.stay_open": "whether the endpoint is worth a call",
    f"{_breaker}.take_try": "whether the endpoint is worth a call",
    f"{_lots}.rename": "frees the code of a cancelled lot",
    "splits.models.progress.SightingQuerySet.first_time": "an order was seen to hang",
    "splits.models.progress.SightingQuerySet.note_holder": "who was seen to hold it",
    f"{_orders}.progress": "a finalizer's sign of life",
    "splits.notify._count_failure": "the breaker's row",
    "splits.selfcheck._order": "rolled back",
}
"""What writes rows and changes the state of none: what it is instead."""

CALLERS = {
    ("ledger.accounts._change", "close"),
    ("ledger.accounts._change", "reopen"),
    ("ledger.accounts.correct", "correct"),
    ("ledger.actions.Discard._change", "discard"),
    ("ledger.actions.Edit._change", "edit"),
    ("ledger.actions.Redrive.put_back", "put_back"),
    ("ledger.actions.Restore._change", "restore"),
    ("ledger.actions._redrive", "redrive"),
    ("recovery.carrying.Carrier._commit_halt", "halt"),
    ("recovery.carrying.Carrier._finish", "finish"),
    ("recovery.carrying.Carrier._undone", "become"),
    ("recovery.carrying.Carrier._kept", "become"),
    ("recovery.pauses.pause", "pause"),
    ("recovery.pauses.resume", "resume"),
    ("recovery.plans._take_up_failed", "wait_again"),
    ("recovery.plans._take_up_failed", "count_again"),
    ("recovery.plans.cancel", "cancel"),
    ("recovery.plans.pause", "pause"),
    ("recovery.plans.resume", "resume"),
    ("recovery.plans.start", "start"),
    ("recovery.restoring.raise_fences.attempt", "fence_off"),
    ("recovery.runner._record", "finish"),  # of the run, which is its own record
    ("recovery.runner._record", "release"),  # of the lease
    ("recovery.selfcheck.locks._as_if_not_paused", "resume"),  # rolled back
    ("recovery.trail.archiving._mark_written.attempt", "mark_written"),
    ("recovery.trail.archiving._note_cold", "put_away"),
    ("splits.drills.goods.withdraw", "cancel"),  # of the drill's own boards
    ("splits.finalize._charge.verb", "fail"),
    ("splits.finalize._finish", "finish"),  # the normal path
    ("splits.lifecycle._cancel", "cancel"),
    ("splits.lifecycle._reverse", "cancel"),
    ("splits.lifecycle._reverse", "mark_reversed"),
    ("splits.lifecycle._reverse", "restore"),
    ("splits.lifecycle.release.apply", "release"),
    ("splits.lifecycle.retry.apply", "retry"),
    ("splits.notify._close_breaker", "close"),  # of the breaker
    ("splits.reconcile.repairs._correct", "correct"),
    ("splits.restoring._raise.attempt", "fence_off"),
    ("splits.stuck._reset", "reset"),
}
"""Who calls a verb that is audited: each is driven, or says what else it is about."""

NO_ROWS = {
    "_database", "_file", "_thread", "action", "bar", "children", "last", "left", "link",
    "listener",
    "made", "opened", "probe", "process", "rest",
    "self", "sentinel", "span", "stdin", "super", "thread",
}  # fmt: skip
"""What else has methods of these names."""

RECORDERS = {
    "ledger.accounts._change",
    "ledger.accounts.correct",
    "ledger.actions._record",
    "ledger.rows._record_death",
    "recovery.admin.recorded.OnTheRecord._record",  # users and groups: tests/recovery/test_people
    "recovery.audit.record",
    "recovery.carrying.Carrier._record",
    "recovery.pauses._record",
    "recovery.plans._record",
    "recovery.plans.note_preview",  # changes nothing
    "recovery.restoring.raise_fences.attempt",
    "recovery.retention.Rule._record_once",
    "recovery.trail.archiving._mark_written.attempt",
    "recovery.trail.archiving._note_cold",
    "recovery.trail.copies._tell",  # tests/recovery/trail/test_tiers
    "recovery.trail.guards._tell",  # tests/recovery/trail/test_guards
    "recovery.selfcheck.trails._probe",  # changes nothing
    "splits.audit.record",
    "splits.drills.performance._record",  # changes nothing
    "splits.finalize._audit_failure",
    "splits.lifecycle._move",
    "splits.reconcile.repairs._correct",
    "splits.restoring._record",
    "splits.stuck._record",
}
"""The functions that write records."""

NO_CHANGE = {
    plans.PREVIEWED: "somebody looked",
    "split-order-finalized": "no record: the type of an event of the ledger",
    "lot-received": "no record: the type of an event of the ledger",
    "lot-withdrawn": "no record: the type of an event of the ledger",
}


@dataclass(frozen=True)
class Documented:
    """A row of a table in docs/architecture.md."""

    kind: str
    begins: str
    ends: str
    audited: tuple[str, ...]


def documented(text: str) -> Iterator[Documented]:
    """Yield the rows of the tables of states in the text of docs/architecture.md."""
    kind = ""
    for line in text.partition("\n## States\n")[2].splitlines():
        if line.startswith("## "):
            return
        if line.startswith("### "):
            kind = line[4:]
        if not line.startswith("| ") or line.startswith(("| from", "| what", "| ---")):
            continue
        cells = [cell.strip().replace("`", "") for cell in line.strip("| ").split(" | ")]
        if kind == WORK:
            cells = cells[1:]
        begins, ends, _by, *audited = cells
        names = ", ".join(audited).split(", ")
        yield Documented(
            kind, begins, ends, tuple(name.strip(" |") for name in names if name.strip(" |"))
        )
