"""Whatever repairs is on the record, in the transaction of the change: no audit, no change."""

import copy
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings as configured
from django.core.management.base import CommandError
from django.db import DatabaseError, connection

from ledger.models import EntryStatus
from recovery import actions, registry
from recovery.admin import audited
from recovery.clock import db_now
from recovery.models import AuditRecord, ItemStatus, JobRun, Plan, PlanStatus, RunStatus
from recovery.runner import run_job
from splits import audit as of_orders
from splits.models import LotStatus, OrderStatus, SplitOrder
from tests.faults import sites, stages
from tests.faults.repairs import CLAIM, REPAIRS
from tests.faults.stages import queued
from tests.faults.transitions import (
    CALLERS,
    ENTRY,
    ITEM,
    JOB,
    LOT,
    NO_CHANGE,
    NO_ROWS,
    NO_STATE,
    ORDER,
    PERSON,
    PLAN,
    RECORDERS,
    TABLE,
    WORK,
    Documented,
    documented,
)
from tests.ledger.entries import refusing

transactional = pytest.mark.django_db(transaction=True)

AUDIT = AuditRecord._meta.db_table
STATES = {
    ORDER: OrderStatus,
    LOT: LotStatus,
    ENTRY: EntryStatus,
    PLAN: PlanStatus,
    ITEM: ItemStatus,
    WORK: RunStatus,
}
NAMES = r"(split-order|lot|outbox-entry|account|plan|job|database|retention)-[a-z-]+|audit-archived"
EACH = [pytest.param(repair, id=repair.name) for repair in REPAIRS]
EACH_RECORD = [
    pytest.param(repair, record.action, id=f"{repair.name}: {record.action}")
    for repair in REPAIRS
    for record in repair.records
]
BY_ITSELF = [
    pytest.param(repair, id=repair.name)
    for repair in REPAIRS
    if repair.records[0].actor.startswith("system:") and repair.besides != CLAIM
]


@pytest.fixture(autouse=True)
def _folders(settings, tmp_path):
    """Keep archives in folders of the test."""
    stores = copy.deepcopy(settings.STORAGES)
    for alias in ("audit_archive", "audit_cold"):
        stores[alias]["OPTIONS"]["location"] = str(tmp_path / alias)
    settings.STORAGES = stores


# The table against the code


def test_table_is_the_one_of_the_architecture():
    text = (Path(configured.BASE_DIR) / "docs" / "architecture.md").read_text()
    listed = [Documented(row.kind, row.begins, row.ends, row.audited) for row in TABLE]
    assert sorted(documented(text), key=str) == sorted(listed, key=str)


def test_each_state_there_is_can_be_reached_by_a_transition():
    for kind, states in STATES.items():
        ends = {end for row in TABLE if row.kind == kind for end in row.ends.split(", ")}
        assert set(states.values) <= ends, kind


def test_each_transition_is_audited_and_driven_or_says_why_not():
    for row in TABLE:
        assert bool(row.audited) is not bool(row.why_not), row
        driven = [
            repair
            for repair in REPAIRS
            if (repair.kind, repair.ends) == (row.kind, row.ends)
            and {it.action for it in repair.records} == set(row.audited)
        ]
        if driven:
            actors = {it.actor.startswith("system:") for repair in driven for it in repair.records}
            assert {JOB if by_itself else PERSON for by_itself in actors} == set(row.by), row
        begun = {repair.begins for repair in driven}
        assert begun == (set(row.begins.split(", ")) if row.audited else set()), row


def test_each_repair_is_in_the_table():
    listed = {(row.kind, row.ends, frozenset(row.audited)) for row in TABLE}
    for repair in REPAIRS:
        audited_as = frozenset(it.action for it in repair.records)
        assert (repair.kind, repair.ends, audited_as) in listed, repair.name


def test_each_write_in_the_code_is_a_transition_or_says_what_else_it_is():
    verbs = {verb for row in TABLE for verb in row.verbs}
    assert not verbs & NO_STATE.keys()
    assert sites.writing() == verbs | NO_STATE.keys()


def test_each_caller_of_a_verb_that_is_audited_is_known():
    verbs = {verb for row in TABLE if row.audited for verb in row.verbs}
    methods = {verb.rpartition(".")[2] for verb in verbs if "QuerySet." in verb}
    found = {call for call in sites.calls(methods) if call.on not in NO_ROWS}
    assert {(call.site, call.method) for call in found} == CALLERS


def test_each_function_that_writes_a_record_is_known():
    assert sites.recording() == RECORDERS


def test_each_name_of_a_record_is_that_of_a_transition():
    driven = {record.action for repair in REPAIRS for record in repair.records}
    assert set(sites.words(NAMES)) == driven | NO_CHANGE.keys()


def test_each_action_of_operators_is_driven_by_its_record():
    driven = {record.action for repair in REPAIRS for record in repair.records}
    assert {it.audit_action for it in actions.all_actions()} <= driven
    named = " ".join(repair.name for repair in REPAIRS)
    assert not [it.name for it in actions.all_actions() if it.name not in named]


def test_each_job_that_names_its_records_has_them_driven():
    for job in registry.all_jobs():
        of_job = {it.action for repair in REPAIRS for it in repair.records if it.job == job.base}
        assert set(job.audit_actions) <= of_job, job.name


def test_console_knows_each_name_of_a_record():
    driven = {record.action for repair in REPAIRS for record in repair.records}
    assert driven <= set(audited.actions())


# What happens


def looked(staged, other=connection):
    """Return what the row that changes is now, as ``other`` connection sees it."""
    with other.cursor() as cursor:
        cursor.execute(staged.look)
        row = cursor.fetchone()
        return dict(zip((it[0] for it in cursor.description), row, strict=True)) if row else {}


def contents(repair):
    """Return all rows that must stay as they are, but for what the way there changes."""
    return {
        model.__name__: [
            {name: value for name, value in row.items() if name not in repair.besides}
            for row in model._default_manager.order_by("pk").values()
        ]
        for model in repair.kept
    }


def records_of(repair, after=0):
    actions_of = [it.action for it in repair.records]
    return AuditRecord.objects.filter(pk__gt=after, action__in=actions_of).order_by("pk")


def newest_record():
    return max(AuditRecord.objects.values_list("pk", flat=True), default=0)


@transactional
@pytest.mark.parametrize("repair", EACH)
def test_repair_is_on_the_record_with_who_why_before_after_evidence_and_run(repair, settings):
    staged = repair.stage(settings)
    known, waiting = newest_record(), queued()
    staged.act()
    assert repair.changes or queued() > waiting
    assert repair.word(looked(staged)) == repair.end
    found = list(records_of(repair, known))
    assert [it.action for it in found] == [it.action for it in repair.records]
    for record, wanted in zip(found, repair.records, strict=True):
        assert record.action.startswith(record.target_type)
        assert record.target_id == (staged.target or str(Plan.objects.get().pk))
        assert (record.actor, record.reason) == (wanted.actor, wanted.reason)
        assert (record.before != record.after) is repair.changes
        assert record.after
        if repair.kind not in (LOT, ITEM):  # what else the repair of an order or a plan changed
            assert repair.word(record.before) == repair.begins
            assert repair.word(record.after) == repair.end
        assert set(wanted.evidence) <= set(record.evidence)
        run = JobRun.objects.filter(run_id=record.run_id).first()
        assert (run.job_id if run else "") == wanted.job


@contextmanager
def no_record(action):
    """Let the database refuse every record of ``action``; yield a list of its refusals."""
    refusals = []

    def watch(execute, sql, params, *rest):
        try:
            return execute(sql, params, *rest)
        except DatabaseError:
            if sql.startswith("INSERT") and AUDIT in sql:
                refusals.append(sql)
            raise

    with refusing(AUDIT, f"NEW.action = '{action}'"), connection.execute_wrapper(watch):
        yield refusals


@transactional
@pytest.mark.parametrize(("repair", "action"), EACH_RECORD)
def test_repair_whose_record_the_database_refuses_changes_nothing(repair, action, settings):
    staged = repair.stage(settings)
    before, known, waiting = contents(repair), newest_record(), queued()
    with (
        no_record(action) as refusals,
        suppress(DatabaseError, CommandError),
    ):
        staged.act()
    assert refusals
    assert contents(repair) == before
    assert repair.word(looked(staged)) == repair.begins
    assert not records_of(repair, known).exists()
    assert repair.changes or queued() == waiting


@transactional
@pytest.mark.parametrize("repair", BY_ITSELF)
def test_automatic_repair_that_was_refused_its_record_is_made_by_the_next_run(repair, settings):
    staged = repair.stage(settings)
    known = newest_record()
    with no_record(repair.records[0].action) as refusals:
        staged.act()
    assert refusals
    assert repair.word(looked(staged)) == repair.begins
    staged.act()
    assert repair.word(looked(staged)) == repair.end
    assert records_of(repair, known).count() == len(repair.records)


@transactional
def test_attempt_whose_failure_cannot_be_recorded_is_reset_as_one_that_hangs(settings):
    staged = stages.failing_in_job(settings)
    with no_record(of_orders.FAILED) as refusals:
        staged.act()
    assert refusals
    order = SplitOrder.objects.get(number=staged.target)
    assert (order.finalize_in_progress, order.finalize_attempts) == (True, 1)
    past = db_now() - timedelta(seconds=1_000)
    SplitOrder.objects.filter(pk=order.pk).update(finalize_progress_at=past)
    assert run_job(stages.STUCK_JOB).result == {"recovered": 1}
    record = AuditRecord.objects.get(target_id=order.number)
    assert record.action == of_orders.RECOVERED
    assert record.evidence["attempt_charged"]


@transactional
@pytest.mark.parametrize("repair", EACH)
def test_change_and_record_are_seen_by_others_at_the_same_moment(
    repair, settings, second_connection
):
    staged = repair.stage(settings)
    known, seen = newest_record(), []
    names = ", ".join(f"'{it.action}'" for it in repair.records)
    count = f"SELECT COUNT(*) FROM {AUDIT} WHERE id > {known} AND action IN ({names})"

    def note():
        with second_connection.cursor() as cursor:
            cursor.execute(count)
            (records,) = cursor.fetchone()
        now = looked(staged, second_connection), records
        if not seen or seen[-1] != now:
            seen.append(now)

    def watch(execute, sql, params, *rest):
        try:
            return execute(sql, params, *rest)
        finally:
            note()

    note()
    with connection.execute_wrapper(watch):
        staged.act()
    note()
    at = next(nth for nth, (_row, records) in enumerate(seen) if records)
    (before, none), (after, all_of_them) = seen[at - 1], seen[at]
    assert (none, all_of_them) == (0, len(repair.records))
    assert (before != after) is repair.changes
    assert (repair.word(before), repair.word(after)) == (repair.begins, repair.end)
