"""What drills leave behind: from every state back to nothing; others' things are never touched."""

from datetime import datetime, timedelta

import pytest
from django.db import transaction

from ledger.models import EntryStatus, OutboxEntry
from recovery import audit
from recovery.clock import db_now
from recovery.leases import HOST
from recovery.models import AuditRecord
from recovery.runner import run_job
from splits import lifecycle, notify
from splits.drills import cleaning, names, poison
from splits.drills.exercise import DrillFailedError
from splits.drills.goods import LINES, make_board, make_order
from splits.drills.liveness import may_live
from splits.drills.overrides import settings_here
from splits.errors import OutputsTouchedError
from splits.finalize import Ending, finalize
from splits.models import FinalizeStep, Lot, LotStatus, OrderStatus, SplitOrder, StepName
from tests.factories import SplitOrderFactory, hang
from tests.splits.drills import AUTHOR, assert_nothing_is_left, drill, exercise, perform
from tests.splits.endpoint import serving

pytestmark = pytest.mark.django_db(transaction=True)

DEAD_PID = 2**22 + 1
"""Above the largest number that Linux gives."""
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(cleaning, "STALE_S", 0.0)


def draft(code):
    with transaction.atomic():
        order = lifecycle.create_order(number=code, source_lot=make_board(code), lines=LINES)
    return order


def ready(code):
    return make_order(code)


def due(code):
    order = draft(code)
    lifecycle.submit(order.pk)
    return order


def hanging(code):
    return hang(make_order(code))


def half_done(code, status=OrderStatus.READY):
    """Leave an order after ``consume_source``."""
    order = make_order(code)
    with settings_here(RECOVERY_FAULTPOINTS="finalize.before_step.create_outputs=raise"):
        outcome = finalize(order.pk, author=AUTHOR, now=True)
    assert outcome.ending is Ending.FAILED
    SplitOrder.objects.filter(pk=order.pk).update(status=status, next_finalize_at=None)
    return order


def half_failed(code):
    return half_done(code, OrderStatus.FAILED)


def half_quarantined(code):
    return half_done(code, OrderStatus.QUARANTINED)


def finalized(code):
    order = make_order(code)
    assert finalize(order.pk, author=AUTHOR, now=True).ending is Ending.FINALIZED
    return order


def posted(code):
    order = finalized(code)
    assert run_job("processLedgerOutbox").status == "ok"
    return order


def reversed_(code):
    order = posted(code)
    lifecycle.reverse(order.pk, author=AUTHOR)
    return order


def board_alone(code):
    with transaction.atomic():
        return make_board(f"{code}-A")


def fresh_poison(code):
    with transaction.atomic():
        entry = poison.publish_poison(code, f"lot:{code}-A")
        make_board(f"{code}-A")
    return entry


def refused_poison(code):
    entry = fresh_poison(code)
    run_job("processLedgerOutbox")
    return entry


def dead_poison(code):
    entry = refused_poison(code)
    assert poison.hurry(entry)
    run_job("processLedgerOutbox")
    assert OutboxEntry.objects.get(pk=entry.pk).status == EntryStatus.DEAD
    return entry


STATES = [
    draft, ready, due, hanging, half_done, half_failed, half_quarantined, finalized, posted,
    reversed_, board_alone, fresh_poison, refused_poison, dead_poison,
]  # fmt: skip


@pytest.mark.parametrize("leave", STATES)
@pytest.mark.parametrize("error", [DrillFailedError("no"), KeyboardInterrupt()])
def test_failed_drill_is_cleaned_up_from_any_state(leave, error):
    def play(it):
        leave(it.code)
        raise error

    it, ending = perform(play)
    assert ending.error == (str(error) or "interrupted")
    assert ending.left == []
    assert_nothing_is_left(it.code)


@pytest.mark.parametrize("leave", STATES)
def test_leftovers_of_a_killed_drill_are_found_and_cleaned_up(leave):
    it = exercise()
    leave(it.code)
    assert cleaning.leftovers() == [it.code]
    assert cleaning.clean(it) == []
    assert_nothing_is_left(it.code)
    assert cleaning.leftovers() == []


def test_cleaning_twice_is_cleaning_once():
    it = exercise()
    finalized(it.code)
    assert cleaning.clean(it) == []
    count = OutboxEntry.objects.count()
    assert cleaning.clean(it) == []
    assert OutboxEntry.objects.count() == count == 4


def test_unexpected_error_is_raised_after_cleaning_up():
    def play(it):
        finalized(it.code)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        perform(play)
    assert_nothing_is_left()
    assert not AuditRecord.objects.get(action="drill-finished").evidence["ok"]


def test_refusal_of_the_product_is_the_drills_failure():
    def play(_it):
        raise OutputsTouchedError("B-1")

    it, ending = perform(play)
    assert "B-1" in ending.error
    assert not it.timeline[0].ok


def test_what_cannot_be_cleaned_up_is_said():
    it = exercise()
    it.allow(0.5)
    order = finalized(it.code)
    Lot.objects.filter(parent_order=order).update(status=LotStatus.CONSUMED)
    rest = cleaning.clean(it)
    assert f"order {it.code} is finalized" in rest
    assert cleaning.leftovers() == [it.code]


def test_things_of_the_house_are_never_cleaned_up():
    order = SplitOrderFactory(number="DRILL-PRESS-1", at=OrderStatus.FINALIZED)
    SplitOrderFactory()
    assert cleaning.leftovers() == []
    it = exercise()
    finalized(it.code)
    assert cleaning.clean(it) == []
    order.refresh_from_db()
    assert order.status == OrderStatus.FINALIZED
    assert Lot.objects.filter(sku="OAK", status=LotStatus.AVAILABLE).count() == 1


# Which drills are over


def started(code, *, age=timedelta(0), host=HOST, pid=DEAD_PID):
    record = AuditRecord(
        at=db_now() - age,
        actor="cli:ann",
        action="drill-started",
        target_type="drill",
        target_id=code,
        evidence={"host": host, "pid": pid, "timeout_s": 120.0},
    )
    record.save()


@pytest.mark.parametrize(
    ("facts", "under_way"),
    [
        ({"pid": 1}, True),  # somebody's, and alive
        ({"pid": DEAD_PID}, False),
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "age": timedelta(seconds=100)}, True),
        ({"host": "elsewhere", "age": timedelta(seconds=215)}, False),
        ({"pid": 1, "age": HOUR}, False),  # the number was given to another process
    ],
)
def test_drill_is_under_way_while_its_process_may_live(facts, under_way):
    it = exercise()
    make_order(it.code)
    started(it.code, **facts)
    assert list(cleaning.under_way()) == ([it.code] if under_way else [])
    assert cleaning.leftovers() == ([] if under_way else [it.code])


def test_drill_of_another_host_that_may_be_at_work_is_named():
    it = exercise()
    make_order(it.code)
    started(it.code, host="elsewhere")
    status, document = drill("--clean")
    assert (status, document["cleaned"]) == (1, [])
    (until,) = document["under_way"].values()
    assert list(document["under_way"]) == [it.code]
    assert db_now() < datetime.fromisoformat(until) < db_now() + HOUR


def test_drill_that_finished_is_over():
    it = exercise()
    make_order(it.code)
    started(it.code, pid=1)
    with transaction.atomic():
        audit.record(
            actor="cli:ann", action="drill-finished", target_type="drill", target_id=it.code
        )
    assert cleaning.leftovers() == [it.code]


def test_process_of_another_host_may_live():
    assert may_live("elsewhere", DEAD_PID)
    assert may_live(HOST, None)
    assert may_live(HOST, 1)
    assert not may_live(HOST, DEAD_PID)


# The outside, and the workers


def test_no_worker_takes_an_order_of_a_drill_that_is_not_due():
    order = make_order(exercise().code)
    assert run_job("finalizeRetryWorker").result == {}
    order.refresh_from_db()
    assert (order.status, order.finalize_epoch) == (OrderStatus.READY, 0)


def test_outside_never_hears_of_a_drills_order(settings):
    settings.SPLIT_COMPLETION_TIMEOUT_SEC = 60
    with serving() as endpoint:
        settings.SPLIT_COMPLETION_WEBHOOK = endpoint.url
        order = due(exercise().code)
        real = SplitOrderFactory()
        assert run_job("finalizeRetryWorker").status == "ok"
    order.refresh_from_db()
    real.refresh_from_db()
    assert order.status == real.status == OrderStatus.FINALIZED
    assert FinalizeStep.objects.filter(order=order, name=StepName.NOTIFY).exists()
    assert [real.number.encode() in body for body in endpoint.bodies] == [True]


@pytest.mark.parametrize(
    ("number", "address", "wanted"),
    [
        ("SO-1", "", False),
        ("SO-1", "http://erp.example/done", True),
        ("DRILL-20261124T122525Z-0a1b2c", "http://erp.example/done", False),
        ("DRILL-20261124T122525Z-0a1b2c", "", False),
        ("DRILL-20261124T122525Z-0a1b2c", "http://h/DRILL-20261124T122525Z-0a1b2c", True),
        ("DRILL-20261124T122525Z-0a1b2c", "http://h/DRILL-20261124T122525Z-ffffff", False),
    ],
)
def test_of_a_drills_order_only_its_own_endpoint_is_told(settings, number, address, wanted):
    settings.SPLIT_COMPLETION_WEBHOOK = address
    assert notify.is_wanted(number) is wanted


# Hurrying


@pytest.mark.parametrize(
    ("status", "attempts", "due_in_s", "hurried"),
    [
        ("pending", 0, 60, False),  # parked: never refused
        ("pending", 1, 60, True),
        ("pending", 1, -1, False),  # due anyway
        ("pending", 9, 60, True),
        ("pending", 10, 60, False),
        ("dead", 10, 60, False),
        ("discarded", 1, 60, False),
        ("posted", 1, 60, False),
    ],
)
def test_refused_entry_that_waits_is_hurried_to_its_last_attempt(
    status, attempts, due_in_s, hurried
):
    entry = fresh_poison(exercise().code)
    this = OutboxEntry.objects.filter(pk=entry.pk)
    due_at = db_now() + timedelta(seconds=due_in_s)
    this.update(status=status, attempts=attempts, next_attempt_at=due_at)
    assert poison.hurry(entry) is hurried
    assert this.get().attempts == (9 if hurried else attempts)
    assert this.due().exists() is (hurried or (status == "pending" and due_in_s < 0))


def test_only_a_dead_entry_is_discarded_and_once():
    entry = refused_poison(exercise().code)
    assert not poison.discard(entry, AUTHOR)
    assert poison.hurry(entry)
    run_job("processLedgerOutbox")
    assert poison.discard(entry, AUTHOR)
    assert not poison.discard(entry, AUTHOR)
    assert AuditRecord.objects.filter(action="outbox-entry-discarded").count() == 1


# Names and settings


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("DRILL-20261124T122525Z-0a1b2c", "DRILL-20261124T122525Z-0a1b2c"),
        ("DRILL-20261124T122525Z-0a1b2c-A-001", "DRILL-20261124T122525Z-0a1b2c"),
        ("DRILL-PRESS-1", ""),
        ("SO-DRILL-20261124T122525Z-0a1b2c", ""),
    ],
)
def test_code_begins_the_names_of_what_a_drill_makes(name, code):
    assert names.code_of(name) == code
    assert names.is_drill(name) is bool(code)


def test_codes_are_new_each_time():
    now = db_now()
    codes = {names.new_code(now) for _ in range(50)}
    assert len(codes) == 50
    assert {names.code_of(code) for code in codes} == codes


def test_settings_are_as_before_whatever_happens(settings):
    before = settings.JOB_BACKOFF_BASE_SEC

    def fail():
        with settings_here(JOB_BACKOFF_BASE_SEC=7):
            assert settings.JOB_BACKOFF_BASE_SEC == 7
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert before == settings.JOB_BACKOFF_BASE_SEC
