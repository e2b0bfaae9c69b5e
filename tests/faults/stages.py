"""Audited transitions about to happen: the scene, and the code that is to make each of them."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.core.management import call_command
from django.db.models import Model
from django_q.brokers import get_broker

from ledger import accounts
from ledger.models import Account, OutboxEntry
from ledger.outbox import JOB as OUTBOX
from ledger.rows import DIED
from recovery import pauses, plans, restoring, schedules
from recovery.foreground import repair
from recovery.models import AuditArchive, ItemStatus, JobRun, Plan, PlanItem, PlanStatus
from recovery.plans import Pace, Wanted
from recovery.runner import run_job
from splits import restoring as restoring_orders
from splits.audit import Author
from splits.lifecycle import FINALIZE_JOB
from splits.models import Lot, LotStatus, OrderStatus, SplitOrder
from tests.factories import LotFactory, SplitOrderFactory, hang
from tests.ledger.entries import into, make_due, put
from tests.recovery.trail.records import ARCHIVE, archived, sealed

STUCK_JOB = "recoverFinalizeStuck"
ANNA, WHY = "anna", "INC-7: the cause is mended"
FAILING = "finalize.before_step.validate=raise"


@dataclass(frozen=True)
class Staged:
    """A transition about to happen."""

    act: Callable[[], Any]
    look: str
    """The SQL that reads the row that changes."""
    target: str = ""
    """What the record calls what it is about; empty: it is not there yet."""


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


# --- orders ---


def commanded(*command: str, look: str, target: str) -> Staged:
    """Return the stage of a command, whatever its exit status."""

    def act() -> None:
        with suppress(SystemExit):
            call_command(*command)

    return Staged(act, look, target)


def failing(settings: Any) -> SplitOrder:
    settings.RECOVERY_FAULTPOINTS = FAILING
    return SplitOrderFactory()


def failing_in_job(settings: Any) -> Staged:
    order = failing(settings)
    return Staged(lambda: run_job(FINALIZE_JOB), order_look(order), order.number)


def failing_for_good(settings: Any) -> Staged:
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    return failing_in_job(settings)


def failing_for_good_by_hand(settings: Any) -> Staged:
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    return failing_by_hand(settings)


def failing_by_hand(settings: Any) -> Staged:
    order = failing(settings)
    return commanded("finalize", order.number, look=order_look(order), target=order.number)


def hanging(_settings: Any) -> Staged:
    order = hang(SplitOrderFactory())
    return Staged(lambda: run_job(STUCK_JOB), order_look(order), order.number)


def hanging_at_its_last(settings: Any) -> Staged:
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    return hanging(settings)


def hanging_too_often(settings: Any) -> Staged:
    settings.JOB_STUCK_ALERT_THRESHOLD = 0
    return hanging(settings)


def hanging_reset_by_hand(_settings: Any) -> Staged:
    order = hang(SplitOrderFactory())
    command = ("recover_stuck", order.number, "--reason", WHY)
    return commanded(*command, look=order_look(order), target=order.number)


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
        return Staged(carry, order_look(order), order.number)

    return stage


def moved(verb: Callable[..., bool], at: str) -> Callable[[Any], Staged]:
    """Return the stage of a verb that is called by itself, as drills do."""

    def stage(_settings: Any) -> Staged:
        order = SplitOrderFactory(at=at)
        author = Author(ANNA, WHY)
        return Staged(lambda: verb(order.pk, author=author), order_look(order), order.number)

    return stage


def hanging_planned(_settings: Any) -> Staged:
    order = hang(SplitOrderFactory())
    planned("split.recover", order)
    return Staged(carry, order_look(order), order.number)


def reversing(which: str) -> Callable[[Any], Staged]:
    """Return the stage of a reversal that looks at its lots."""

    def stage(_settings: Any) -> Staged:
        order = SplitOrderFactory(at=OrderStatus.FINALIZED)
        planned("split.reverse", order)
        outputs = order.outputs.order_by("pk").values_list("pk", flat=True)
        lot = outputs[0] if which == "outputs" else order.source_lot_id
        return Staged(carry, f"SELECT status FROM splits_lot WHERE id = {lot}", order.number)

    return stage


def freeing(_settings: Any) -> Staged:
    lot = LotFactory(status=LotStatus.CONSUMED)
    return _reconciled(lot, "lot_consumed_without_order", f"lot:{lot.code}")


def consuming(_settings: Any) -> Staged:
    order = SplitOrderFactory(at=OrderStatus.FINALIZED)
    assert Lot.objects.filter(pk=order.source_lot_id).restore()
    return _reconciled(order.source_lot, "source_lot_not_consumed", f"split-order:{order.number}")


def _reconciled(lot: Lot, *finding: str) -> Staged:
    look = f"SELECT status FROM splits_lot WHERE id = {lot.pk}"
    command = ("reconcile", "--repair", *finding, "--reason", WHY)
    return commanded(*command, look=look, target=lot.code)


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
    return Staged(
        lambda: restoring_orders.raise_epochs(restoring.floor(), author=author),
        look,
        restoring_orders.TABLE,
    )


# --- entries ---


def refused(settings: Any) -> OutboxEntry:
    """Return an entry whose next attempt is its last one, and fails."""
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 1
    put("stock", into("ELM", "1"))
    assert run_job(OUTBOX).result == {"posted": 1}
    return put("bad", into("ELM", "-5"))


def refused_in_job(settings: Any) -> Staged:
    entry = refused(settings)
    return Staged(lambda: run_job(OUTBOX), entry_look(entry), str(entry.pk))


def killing(settings: Any) -> Staged:
    entry = refused(settings)
    assert OutboxEntry.objects.filter(pk=entry.pk).charge(delay_s=0, error=DIED)
    make_due()
    return Staged(lambda: run_job(OUTBOX), entry_look(entry), str(entry.pk))


def dead(settings: Any) -> OutboxEntry:
    entry = refused(settings)
    assert run_job(OUTBOX).result["dead"] == 1
    return entry


def entry_planned(action: str, parameters: Any = None) -> Callable[[Any], Staged]:
    def stage(settings: Any) -> Staged:
        settings.DLQ_EDIT_ENABLED = True
        entry = dead(settings)
        planned(action, entry, parameters)
        return Staged(carry, entry_look(entry), str(entry.pk))

    return stage


def redriven_by_hand(settings: Any) -> Staged:
    entry = dead(settings)
    command = ("dlq", "redrive", "--id", str(entry.pk), "--reason", WHY)
    return commanded(*command, look=entry_look(entry), target=str(entry.pk))


def restoring_discarded(settings: Any) -> Staged:
    entry = dead(settings)
    repair("outbox.discard", [entry.pk], actor=ANNA, reason=WHY)
    planned("outbox.restore", entry)
    return Staged(carry, entry_look(entry), str(entry.pk))


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
    return Staged(carry, entry_look(entry), str(entry.pk))


# --- plans ---


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
        return Staged(lambda: verb(plan.pk, actor=ANNA, reason=WHY), plan_look(plan), str(plan.pk))

    return stage


def finishing(settings: Any) -> Staged:
    plan = plan_at(settings, PlanStatus.RUNNING)
    return Staged(carry, plan_look(plan), str(plan.pk))


def halting(settings: Any) -> Staged:
    _entry, plan = failed_canary(settings)
    return Staged(carry, plan_look(plan), str(plan.pk))


def item_look(plan: Plan) -> str:
    return f"SELECT status FROM recovery_planitem WHERE plan_id = {plan.pk}"


def undoing(settings: Any) -> Staged:
    entry, plan = failed_canary(settings)
    return Staged(carry, item_look(plan), str(entry.pk))


def resuming(settings: Any) -> Staged:
    plan = plan_at(settings, PlanStatus.HALTED)
    return Staged(
        lambda: plans.resume(plan.pk, actor=ANNA, reason=WHY), item_look(plan), str(plan.pk)
    )


def resuming_failed(settings: Any) -> Staged:
    staged = resuming(settings)
    assert PlanItem.objects.become(ItemStatus.FAILED)
    return staged


# --- accounts and jobs ---


def account(verb: str) -> Callable[[Any], Staged]:
    def stage(settings: Any) -> Staged:
        refused(settings)
        if verb == "reopen":
            assert Account.objects.filter(code="stock:ELM").close()
        look = "SELECT closed_at FROM ledger_account WHERE code = 'stock:ELM'"
        act = getattr(accounts, verb)
        return Staged(
            lambda: act("stock:ELM", "m2", actor=ANNA, reason=WHY), look, "stock:ELM [m2]"
        )

    return stage


def correcting(_settings: Any) -> Staged:
    Account.objects.create(code="stock:ELM", unit="m2", balance=5)
    finding = ("balance_differs_from_postings", "account:stock:ELM [m2]")
    return commanded(
        "reconcile", "--repair", *finding, "--reason", WHY,
        look="SELECT balance FROM ledger_account WHERE code = 'stock:ELM'", target="stock:ELM [m2]",
    )  # fmt: skip


def job(verb: str) -> Callable[[Any], Staged]:
    def stage(_settings: Any) -> Staged:
        schedules.ensure_rows()
        if verb == "resume":
            assert pauses.pause(OUTBOX, actor=ANNA)
        return commanded(
            "jobs", verb, OUTBOX, "--reason", WHY, look=job_look(OUTBOX), target=OUTBOX
        )

    return stage


def asked_to_run(_settings: Any) -> Staged:
    schedules.ensure_rows()
    return Staged(lambda: pauses.run_now(OUTBOX, actor=ANNA, reason=WHY), job_look(OUTBOX), OUTBOX)


def queued() -> int:
    """Return how many wake-ups wait."""
    return int(get_broker().queue_size())


def fencing(_settings: Any) -> Staged:
    schedules.ensure_rows()
    look = f"SELECT fence FROM recovery_job WHERE name = '{OUTBOX}'"

    def act() -> Any:
        evidence = {"unfinished_orders": 0}
        return restoring.raise_fences(restoring.floor(), actor=ANNA, reason=WHY, evidence=evidence)

    return Staged(act, look, "default")


# --- what is past its days ---


def expiring(_settings: Any) -> Staged:
    schedules.ensure_rows()
    made = JobRun.objects.create(job_id=OUTBOX, fence=1, host="h", pid=1, status="ok")
    JobRun.objects.filter(pk=made.pk).update(started_at="2020-01-01T00:00Z")
    there = f"EXISTS (SELECT 1 FROM recovery_jobrun WHERE id = {made.pk})"
    look = f"SELECT CASE WHEN {there} THEN 'there' ELSE 'gone' END AS state"
    return Staged(lambda: run_job(ARCHIVE), look, "job_runs")


def placing(settings: Any) -> Staged:
    """Stop the archiver before a file is in its place; and, once it is, before rows go."""
    sealed(2, days_ago=100)
    settings.RECOVERY_FAULTPOINTS = "archive.before_rename=raise"
    assert run_job(ARCHIVE).status == "failed"
    made = AuditArchive.objects.get()

    def act() -> None:
        settings.RECOVERY_FAULTPOINTS = "archive.before_delete=raise"
        run_job(ARCHIVE)
        settings.RECOVERY_FAULTPOINTS = ""

    look = f"SELECT status FROM recovery_auditarchive WHERE id = {made.pk}"
    return Staged(act, look, made.name)


def putting_away(settings: Any) -> Staged:
    archived(2, days_ago=190)
    settings.AUDIT_WARM_DAYS = 100
    made = AuditArchive.objects.get()
    look = f"SELECT tier FROM recovery_auditarchive WHERE id = {made.pk}"
    return Staged(lambda: run_job(ARCHIVE), look, made.name)
