"""Each repair and its audit record are one transaction: where the record fails, nothing changed."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings as configured
from django.db import DatabaseError, connection
from django.db.models import Model

from ledger import accounts
from ledger.models import Account, EntryStatus, OutboxEntry
from recovery import pauses, plans, runner, schedules
from recovery.admin import audited
from recovery.models import AuditRecord, Job, JobRun, Plan
from recovery.plans import Pace, Wanted
from splits import lifecycle
from splits.finalize import finalize
from splits.models import OrderStatus, SplitOrder
from tests.factories import AUTHOR, SplitOrderFactory, hang
from tests.ledger.entries import into, put
from tests.recovery.trail.records import sealed

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("no_redis")]

STUCK, DRAIN, PLANS, ARCHIVE = (
    "recoverFinalizeStuck",
    "processLedgerOutbox",
    "runRecoveryPlans",
    "auditArchive",
)
NOT_STATE = {"recovery_auditrecord", "recovery_jobrun", "recovery_job", "django_q_ormq"}
"""Rows that say who works, not what was repaired; and the trail itself."""


@dataclass(frozen=True)
class Repair:
    """A transition that is audited: what leads there, what does it, and what it must leave."""

    action: str
    ready: Callable[[Any], Any]
    """Makes the rows, and sets limits; returns what ``act`` is about."""
    act: Callable[[Any], Any]
    actor: str = "cli:tester"
    reason: str = "because"
    evidence: tuple[str, ...] = ()
    by_job: bool = False


def order(at: OrderStatus = OrderStatus.READY, **limits: Any) -> Callable[[Any], SplitOrder]:
    """Return what makes an order, within limits."""

    def ready(settings: Any) -> SplitOrder:
        for name, value in limits.items():
            setattr(settings, name, value)
        return SplitOrderFactory(at=at)

    return ready


def hung(**limits: Any) -> Callable[[Any], SplitOrder]:
    """Return what makes an order whose finalizer is dead."""
    return lambda settings: hang(order(**limits)(settings))


def failing(made: SplitOrder) -> None:
    """Attempt to finalize an order whose source is gone."""
    finalize(made.pk, author=AUTHOR, now=True)


def without_source(**limits: Any) -> Callable[[Any], SplitOrder]:
    """Return what makes an order that cannot be finalized: its board is consumed."""

    def ready(settings: Any) -> SplitOrder:
        made: SplitOrder = order(**limits)(settings)
        type(made.source_lot).objects.filter(pk=made.source_lot_id).update(status="consumed")
        return made

    return ready


def verb(name: str) -> Callable[[SplitOrder], Any]:
    """Return what does something to an order, as a person does."""
    return lambda made: getattr(lifecycle, name)(made.pk, author=AUTHOR)


def run(job: str) -> Callable[[Any], Any]:
    """Return what runs a job."""
    return lambda _made: runner.run_job(job)


def refused_entry(settings: Any) -> OutboxEntry:
    """Publish what the ledger refuses, at its last attempt."""
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 1
    return put("k", into("OAK", "-1"))


def dead_entry(settings: Any) -> OutboxEntry:
    """Let an entry die."""
    made = refused_entry(settings)
    assert runner.run_job(DRAIN).status == "ok"
    return made


def discarded_entry(settings: Any) -> OutboxEntry:
    """Let an entry die, and give it up."""
    made = dead_entry(settings)
    planned("outbox.discard", made)
    assert runner.run_job(PLANS).status == "ok"
    return made


def planned(action: str, entry: OutboxEntry, **parameters: Any) -> Plan:
    """Make a plan for an entry, and let it run."""
    plan = plans.create(Wanted(action, [entry.pk], "cli:tester", "because", parameters))
    plans.start(plan.pk, actor="cli:tester")
    return plan


def by_plan(
    action: str, make: Callable[[Any], OutboxEntry], **parameters: Any
) -> Callable[[Any], Plan]:
    """Return what makes an entry and a plan that runs, and carries nothing yet."""

    def ready(settings: Any) -> Plan:
        settings.DLQ_EDIT_ENABLED = True
        return planned(action, make(settings), **parameters)

    return ready


def plan_of_one(settings: Any) -> Plan:
    """Make a plan."""
    made = dead_entry(settings)
    return plans.create(Wanted("outbox.redrive", [made.pk], "cli:tester", "because"))


def running_plan(settings: Any) -> Plan:
    """Make a plan that runs."""
    made = plan_of_one(settings)
    plans.start(made.pk, actor="cli:tester")
    return made


def paused_plan(settings: Any) -> Plan:
    """Make a plan that is paused."""
    made = running_plan(settings)
    plans.pause(made.pk, actor="cli:tester", reason="because")
    return made


def carried_plan(settings: Any) -> Plan:
    """Make a plan of which the next run does the last row."""
    return planned("outbox.discard", dead_entry(settings))


def failing_plan(settings: Any) -> Plan:
    """Make a plan whose canary was tried in vain, so that the next run halts it."""
    made = plans.create(
        Wanted(
            "outbox.redrive",
            [dead_entry(settings).pk],
            "cli:tester",
            "because",
            pace=Pace(canary=(1,)),
        )
    )
    plans.start(made.pk, actor="cli:tester")
    runner.run_job(PLANS)
    runner.run_job(DRAIN)
    return made


def told(verb_: Callable[..., Any]) -> Callable[[Plan], Any]:
    """Return what is done to a plan."""
    return lambda made: verb_(made.pk, actor="cli:tester", reason="because")


def an_account(settings: Any) -> Account:
    """Return an account that is there."""
    put("r", into("OAK", "1"))
    assert runner.run_job(DRAIN).status == "ok"
    return Account.objects.get(code="stock:OAK")


def closed_account(settings: Any) -> Account:
    """Return an account that is closed."""
    made = an_account(settings)
    assert accounts.close(made.code, made.unit, actor="cli:tester", reason="because")
    return made


def account(verb_: Callable[..., Any]) -> Callable[[Account], Any]:
    """Return what is done to an account."""
    return lambda made: verb_(made.code, made.unit, actor="cli:tester", reason="because")


def a_job(_settings: Any) -> str:
    """Return a job."""
    schedules.ensure_rows()
    return DRAIN


def paused_job(settings: Any) -> str:
    """Return a job that is paused."""
    name = a_job(settings)
    pauses.pause(name, actor="cli:tester", reason="because")
    return name


def job(verb_: Callable[..., Any]) -> Callable[[str], Any]:
    """Return what is done to a job."""
    return lambda name: verb_(name, actor="cli:tester", reason="because")


def old_records(_settings: Any) -> list[int]:
    """Seal records that are past their days."""
    return sealed(3, days_ago=100)


def old_runs(_settings: Any) -> None:
    """Store a run that is past its days."""
    Job.objects.get_or_create(name=DRAIN)
    made = JobRun.objects.create(job_id=DRAIN, fence=1, host="h", pid=1, status="ok")
    JobRun.objects.filter(pk=made.pk).update(started_at="2020-01-01T00:00Z")


S = "split-order-"
REPAIRS = [
    Repair(f"{S}finalize-failed", without_source(), failing, evidence=("code", "error", "attempt")),
    Repair(f"{S}finalize-retry-limit", without_source(JOB_FINALIZE_RETRY_LIMIT=1), failing,
           evidence=("code", "limit")),
    Repair(f"{S}finalize-stuck-recovered", hung(), run(STUCK), by_job=True),
    Repair(f"{S}quarantined", hung(JOB_STUCK_ALERT_THRESHOLD=0), run(STUCK), by_job=True),
    Repair(f"{S}retried", order(OrderStatus.FAILED), verb("retry")),
    Repair(f"{S}released", order(OrderStatus.QUARANTINED), verb("release")),
    Repair(f"{S}cancelled", order(), verb("cancel")),
    Repair(f"{S}reversed", order(OrderStatus.FINALIZED), verb("reverse")),
    Repair("outbox-entry-dead", refused_entry, run(DRAIN), by_job=True),
    Repair("outbox-entry-redriven", by_plan("outbox.redrive", dead_entry), run(PLANS)),
    Repair("outbox-entry-discarded", by_plan("outbox.discard", dead_entry), run(PLANS)),
    Repair("outbox-entry-restored", by_plan("outbox.restore", discarded_entry), run(PLANS)),
    Repair("plan-started", plan_of_one, told(plans.start)),
    Repair("plan-paused", running_plan, told(plans.pause)),
    Repair("plan-resumed", paused_plan, told(plans.resume)),
    Repair("plan-cancelled", running_plan, told(plans.cancel)),
    Repair("account-closed", an_account, account(accounts.close), evidence=("balance",)),
    Repair("account-reopened", closed_account, account(accounts.reopen), evidence=("balance",)),
    Repair("job-paused", a_job, job(pauses.pause)),
    Repair("job-resumed", paused_job, job(pauses.resume)),
    Repair("audit-archived", old_records, run(ARCHIVE), evidence=("sha256", "hash"), by_job=True),
    Repair("retention-applied", old_runs, run(ARCHIVE), evidence=("table", "before"), by_job=True),
]  # fmt: skip
ELSEWHERE = {
    "plan-created": "test_plan_that_cannot_be_recorded_is_not_made",
    "plan-finished": "test_end_of_a_plan_is_recorded_or_does_not_come",
    "plan-halted": "test_end_of_a_plan_is_recorded_or_does_not_come",
    "outbox-entry-edited": "ledger/test_dlq_command.py: by the plan's way, as redriven",
    "job-run-requested": "changes no row: the record is the act",
    "plan-previewed": "changes no row: somebody looked",
    "selfcheck-probed": "changes no row: the record is what is tried",
    "database-restored": "faults/test_restore.py, splits/test_after_restore_command.py",
    "audit-restored": "recovery/trail/test_tiers.py: copies and record are one transaction",
    "audit-guards-lowered": "recovery/trail/test_guards.py: the record comes first",
    **{
        f"{what}-{done}": "recovery/test_people.py: people and roles, not repairs"
        for what in ("user", "group", "accessattempt")
        for done in ("added", "changed", "deleted")
    },
}


def test_every_action_that_is_audited_is_in_the_list_and_every_transition_of_the_tables():
    known = {it.action for it in REPAIRS} | set(ELSEWHERE)
    assert set(audited.actions()) <= known
    text = (configured.BASE_DIR / "docs" / "architecture.md").read_text()
    states = text[text.index("## States") : text.index("## Where things stand")]
    rows = [it for it in states.splitlines() if it.startswith("| ") and it.count("|") >= 5]
    named = {it for row in rows for it in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", _last(row))}
    assert named <= known
    assert len(named) > 20


def _last(row: str) -> str:
    return row.rstrip("| ").rpartition("|")[2]


def test_every_status_there_is_stands_in_the_tables():
    """A new status needs a transition to it, and a decision whether that is audited."""
    text = (configured.BASE_DIR / "docs" / "architecture.md").read_text()
    states = text[text.index("## States") :]
    for model, field in ((SplitOrder, "status"), (OutboxEntry, "status"), (Plan, "status")):
        for value, _label in model._meta.get_field(field).choices:
            assert f"`{value}`" in states, value


@contextmanager
def unwritable() -> Iterator[None]:
    """Let the database itself refuse every audit record."""
    refusal = {
        "sqlite": "BEGIN SELECT RAISE(ABORT, 'no records'); END",
        "mysql": "FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no records'",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TRIGGER no_records BEFORE INSERT ON recovery_auditrecord {refusal}")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER no_records")


def stored() -> dict[str, list[Any]]:
    """Return every row of the business and of plans, as the database has them."""
    models: list[type[Model]] = [
        it
        for label in ("splits", "ledger", "recovery")
        for it in apps.get_app_config(label).get_models()
        if it._meta.db_table not in NOT_STATE
    ]
    return {it._meta.db_table: list(it._default_manager.order_by("pk").values()) for it in models}


@pytest.fixture(autouse=True)
def _place(settings: Any, tmp_path: Any) -> None:
    stores = {**settings.STORAGES}
    options = {**stores["audit_archive"]["OPTIONS"], "location": str(tmp_path)}
    stores["audit_archive"] = {**stores["audit_archive"], "OPTIONS": options}
    settings.STORAGES = stores


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda it: it.action)
def test_repair_is_recorded_with_who_why_what_was_and_what_is(repair: Repair, settings: Any):
    about = repair.ready(settings)
    before = set(AuditRecord.objects.values_list("pk", flat=True))
    repair.act(about)
    record = AuditRecord.objects.exclude(pk__in=before).get(action=repair.action)
    assert record.target_id
    assert record.reason
    if repair.by_job:
        assert record.actor.startswith("system:")
        assert record.run_id in JobRun.objects.values_list("run_id", flat=True)
    else:
        assert (record.actor, record.reason) == (repair.actor, repair.reason)
    if repair.action != "retention-applied":
        assert record.after
        assert record.before != record.after
    assert set(repair.evidence) <= set(record.evidence)


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda it: it.action)
def test_repair_that_cannot_be_recorded_changes_nothing(repair: Repair, settings: Any):
    about = repair.ready(settings)
    before = stored()
    with unwritable(), suppress(DatabaseError):
        repair.act(about)
    after = stored()
    for table, rows in before.items():
        assert _settled(table, after[table]) == _settled(table, rows), table


ATTEMPTED = {
    "splits_splitorder": {
        "finalize_epoch", "finalize_attempts", "finalize_in_progress", "finalize_started_at",
        "finalize_progress_at", "finalize_owner", "finalize_token", "next_finalize_at",
    },
    "recovery_plan": {
        "carrier", "carrier_until", "fence", "next_row_at", "note", "rows_done",
        "stage_failed", "stage_known", "stage_rows",
    },
    "recovery_planitem": {"status", "note", "at", "result", "stage"},
}  # fmt: skip
"""What an attempt leaves that was made and came to nothing: who tried, and that it failed."""


def _settled(table: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if table == "recovery_auditarchive":
        return []  # its file is in place and its manifest says that rows are all there still
    if table == "ledger_account":  # made before the batch, in a transaction of their own
        return [row for row in rows if row["balance"]]
    if table == "recovery_auditseal":
        rows = [{**row, "archive_id": None} for row in rows]
    return [
        {name: value for name, value in row.items() if name not in ATTEMPTED.get(table, ())}
        for row in rows
    ]


def test_records_of_an_archive_that_cannot_be_recorded_stay_in_the_table(settings: Any):
    ids = old_records(settings)
    with unwritable():
        assert runner.run_job(ARCHIVE).status == "failed"
    assert AuditRecord.objects.filter(pk__in=ids).count() == 3
    assert runner.run_job(ARCHIVE).status == "ok"
    assert not AuditRecord.objects.filter(pk__in=ids).exists()


def test_plan_that_cannot_be_recorded_is_not_made(settings: Any):
    entry = dead_entry(settings)
    with unwritable(), pytest.raises(DatabaseError, match="no records"):
        plans.create(Wanted("outbox.redrive", [entry.pk], "cli:tester", "because"))
    assert not Plan.objects.exists()


@pytest.mark.parametrize(
    ("ready", "ending"), [(carried_plan, "plan-finished"), (failing_plan, "plan-halted")]
)
def test_end_of_a_plan_is_recorded_or_does_not_come(
    settings: Any, ready: Callable[[Any], Plan], ending: str
):
    plan = ready(settings)
    with unwritable():
        runner.run_job(PLANS)
        assert Plan.objects.get(pk=plan.pk).status == "running"
    for _ in range(3):
        runner.run_job(PLANS)
    record = AuditRecord.objects.get(action=ending)
    assert record.before == {"status": "running"}
    assert Plan.objects.get(pk=plan.pk).status in ("done", "halted")
    assert OutboxEntry.objects.get().status in (EntryStatus.DISCARDED, EntryStatus.DEAD)
