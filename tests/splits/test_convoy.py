"""Convoys: orders with nothing in their way are finalized in one transaction, the others alone."""

import signal
import threading
from decimal import Decimal

import pytest
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from ledger.models import OutboxEntry
from ledger.outbox import Line, publish
from recovery.errors import DEADLOCK
from recovery.leases import LeaseLostError
from recovery.models import AuditRecord, Job, JobRun
from recovery.runner import run_job
from splits import convoy, jobs, lifecycle
from splits.audit import Author
from splits.lifecycle import FINALIZE_JOB, NewLine
from splits.metrics import split_orders_overdue
from splits.models import Lot, OrderStatus, SplitOrder, StepName
from tests.factories import LotFactory, SplitOrderFactory, hang
from tests.faults.workload import SHORT
from tests.logs import kept
from tests.splits.endpoint import serving
from tests.splits.processes import finished, is_stopped, manage, wait_until
from tests.splits.state import assert_finalized_once, assert_untouched, contents

pytestmark = pytest.mark.django_db(transaction=True)


class LosingRun:
    """A run whose lease is lost."""

    deaths = 0

    def renew_lease(self):
        raise LeaseLostError("lost")


def together(limit=50, **changes):
    return convoy.finalize_together(limit, **changes)


def orders(count):
    return [SplitOrderFactory() for _ in range(count)]


def pks(found):
    return [order.pk for order in found]


def test_orders_are_finalized_together_with_every_effect_once():
    found = orders(7)
    journey = together()
    assert (journey.claimed, pks(journey.arrived), journey.left) == (7, pks(found), [])
    for order in found:
        assert_finalized_once(order)
        assert (order.finalize_epoch, order.finalize_attempts) == (1, 1)
        assert order.finalize_owner == ""
        assert order.finalize_started_at is not None
        assert {step.epoch for step in order.steps.all()} == {1}
    assert not AuditRecord.objects.exists()


def test_a_convoy_takes_as_many_statements_for_thirty_orders_as_for_three():
    counts = []
    for size in (1, 3, 30):  # the first one also asks to wake the outbox's job
        orders(size)
        with CaptureQueriesContext(connection) as queries:
            assert len(together().arrived) == size
        counts.append(len(queries))
    assert counts[1] == counts[2] < 20


def test_no_more_than_the_limit_go_and_the_longest_due_first():
    found = orders(3)
    SplitOrder.objects.filter(pk=found[2].pk).update(next_finalize_at="2020-01-01T00:00:00Z")
    assert set(pks(together(2).arrived)) == {found[2].pk, found[0].pk}


def tried(order):
    SplitOrder.objects.filter(pk=order.pk).update(finalize_attempts=1, finalize_epoch=1)


def advanced(order):
    SplitOrder.objects.filter(pk=order.pk).advance_locked()


def not_due(order):
    SplitOrder.objects.filter(pk=order.pk).update(next_finalize_at=None)


def without_lines(order):
    order.lines.all().delete()


def lot_consumed(order):
    Lot.objects.filter(pk=order.source_lot_id).consume()


def code_taken(order):
    LotFactory(code=f"{order.source_lot.code}-002")


def key_taken(order):
    with transaction.atomic():
        lines = [Line("a", Decimal(1), "m2"), Line("b", Decimal(-1), "m2")]
        publish(event_key=order.event_key, event_type="x", aggregate="lot:x", lines=lines)


@pytest.mark.parametrize(
    ("hinder", "is_left"),
    [
        (tried, False),
        (not_due, False),
        (hang, False),
        (advanced, False),
        (without_lines, True),
        (lot_consumed, True),
        (code_taken, True),
        (key_taken, True),
    ],
)
@pytest.mark.parametrize("position", [0, 2])
def test_order_that_cannot_go_along_holds_nobody_back(hinder, is_left, position):
    found = orders(5)
    hindered = found.pop(position)
    hinder(hindered)
    journey = together()
    assert sorted(pks(journey.arrived)) == sorted(pks(found))
    assert journey.left == ([hindered.pk] if is_left else [])
    hindered.refresh_from_db()
    assert hindered.status == OrderStatus.READY
    assert not hindered.outputs.exists()
    for order in found:
        assert_finalized_once(order)


@pytest.mark.parametrize("hinder", [without_lines, lot_consumed, code_taken, key_taken])
def test_job_charges_the_guilty_order_alone(hinder):
    found = orders(4)
    guilty = found.pop(1)
    hinder(guilty)
    outcome = run_job(FINALIZE_JOB)
    assert (outcome.status, outcome.result) == ("ok", {"finalized": 3, "failed": 1})
    guilty.refresh_from_db()
    assert guilty.finalize_attempts == 1
    assert guilty.last_finalize_error_code in {
        "no_lines", "lot_not_available", "code_taken", "ledger_refused",
    }  # fmt: skip
    assert AuditRecord.objects.get().target_id == guilty.number
    for order in found:
        assert_finalized_once(order)


def test_retried_order_is_tried_alone_among_fresh_ones():
    late, fresh = orders(2)
    tried(late)
    assert run_job(FINALIZE_JOB).result == {"finalized": 2}
    late.refresh_from_db()
    fresh.refresh_from_db()
    assert (late.finalize_attempts, fresh.finalize_attempts) == (2, 1)


def test_code_of_a_reversed_order_is_taken_back_alone():
    order = SplitOrderFactory(at=OrderStatus.REVERSED)
    again = SplitOrderFactory(source_lot=Lot.objects.get(pk=order.source_lot_id))
    assert together().left == [again.pk]
    assert run_job(FINALIZE_JOB).result == {"finalized": 1}
    assert_finalized_once(again)


def test_child_lots_order_is_published_in_its_roots_aggregate():
    parent = SplitOrderFactory(at=OrderStatus.FINALIZED)
    piece = parent.outputs.get(code__endswith="-001")
    line = NewLine(1, "piece", "OAK-XS", piece.quantity)
    child = lifecycle.create_order(number="SO-child", source_lot=piece, lines=[line])
    lifecycle.submit(child.pk)
    assert pks(together().arrived) == [child.pk]
    entry = OutboxEntry.objects.get(event_key=child.event_key)
    assert entry.aggregate == f"lot:{piece.root_code}"


@pytest.fixture
def other():
    """Return another connection, in a transaction that is rolled back."""
    link = connection.copy()
    with link.cursor() as cursor:
        cursor.execute("BEGIN")
        yield cursor
    link.close()
    connection.close()  # it may have become impatient


@pytest.mark.mariadb
@pytest.mark.parametrize("what", ["order", "source lot", "root lot"])
def test_row_that_somebody_holds_is_not_waited_for(what, other):
    parent = SplitOrderFactory(at=OrderStatus.FINALIZED)
    piece = parent.outputs.get(code__endswith="-001")
    line = NewLine(1, "piece", "OAK-XS", piece.quantity)
    child = lifecycle.create_order(number="SO-child", source_lot=piece, lines=[line])
    lifecycle.submit(child.pk)
    free = orders(3)
    table, pk = {
        "order": ("splits_splitorder", child.pk),
        "source lot": ("splits_lot", piece.pk),
        "root lot": ("splits_lot", parent.source_lot_id),
    }[what]
    other.execute(f"SELECT id FROM {table} WHERE id = %s FOR UPDATE", [pk])
    with connection.cursor() as cursor:
        cursor.execute("SET innodb_lock_wait_timeout = 1")
    journey = together()
    assert pks(journey.arrived) == pks(free)
    assert journey.left == ([] if what == "order" else [child.pk])


@pytest.mark.mariadb
def test_two_convoys_at_once_share_the_orders():
    found = orders(20)
    barrier = threading.Barrier(2, timeout=30)
    arrived = []

    def go():
        try:
            barrier.wait()
            for _ in range(20):
                arrived.extend(pks(together(3).arrived))
        finally:
            connection.close()

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(arrived) == sorted(pks(found))
    for order in found:
        assert_finalized_once(order)


def test_lost_lease_commits_nothing():
    (order,) = orders(1)
    before = contents()
    with pytest.raises(LeaseLostError):
        together(run=LosingRun())
    assert contents() == before
    assert_untouched(order)


def test_unexpected_error_is_found_by_halving_and_the_others_go(monkeypatch):
    found = orders(6)
    genuine = convoy.outbox.publish_all

    def refuse(events):
        events = list(events)
        if found[4].event_key in {event.event_key for event in events}:
            raise ValueError("it is that one")
        genuine(events)

    monkeypatch.setattr(convoy.outbox, "publish_all", refuse)
    journey = together()
    assert journey.left == [found[4].pk]
    assert sorted(pks(journey.arrived)) == sorted(pks(found[:4] + found[5:]))


def test_deadlock_is_tried_again_and_charges_nobody(monkeypatch):
    found = orders(3)
    genuine, errors = convoy.outbox.publish_all, [OperationalError(DEADLOCK, "Deadlock found")]

    def fail_once(events):
        if errors:
            raise errors.pop()
        genuine(events)

    monkeypatch.setattr(convoy.outbox, "publish_all", fail_once)
    assert len(together().arrived) == 3
    for order in found:
        assert_finalized_once(order)
        assert order.finalize_attempts == 1


def test_where_the_outside_is_told_orders_come_as_far_as_that_and_are_told_one_by_one(settings):
    found = orders(3)
    settings.SPLIT_COMPLETION_TIMEOUT_SEC = 60
    with serving() as endpoint:
        settings.SPLIT_COMPLETION_WEBHOOK = endpoint.url
        journey = together()
        assert (pks(journey.arrived), journey.left) == (pks(found), [])
        for order in found:
            order.refresh_from_db()
            assert (order.status, order.finalize_in_progress) == (OrderStatus.READY, False)
            assert (order.finalize_epoch, order.finalize_attempts) == (1, 0)
            assert [step.name for step in order.steps.all()] == list(StepName)[:4]
        assert run_job(FINALIZE_JOB).result == {"finalized": 3}
        assert len(endpoint.bodies) == 3
    for order in found:
        assert_finalized_once(order)
        assert (order.finalize_epoch, order.finalize_attempts) == (2, 1)


def test_each_order_is_logged_and_counted():
    found = orders(2)
    with kept() as lines:
        run_job(FINALIZE_JOB)
    said = [line for line in lines if line["event"] == "finalized"]
    assert [(it["order"], it["epoch"], it["attempt"]) for it in said] == [
        (order.number, 1, 1) for order in found
    ]
    assert {len(it["run_id"]) for it in said} == {36}


@pytest.mark.parametrize("why", ["size", "fault", "death"])
def test_orders_go_alone_where_asked_where_a_fault_is_planned_and_after_a_death(
    why, settings, monkeypatch
):
    found = orders(2)
    monkeypatch.setattr(convoy, "finalize_together", lambda *_args, **_kwargs: pytest.fail("went"))
    if why == "size":
        settings.JOB_FINALIZE_BATCH_SIZE = 1
    elif why == "fault":
        settings.RECOVERY_FAULTPOINTS = "finalize.before_finish=sleep:0"
    else:
        Job.objects.get_or_create(name=FINALIZE_JOB)
        JobRun.objects.create(job_id=FINALIZE_JOB, fence=0, host="h", pid=1, status="died")
    assert run_job(FINALIZE_JOB).result == {"finalized": 2}
    for order in found:
        assert_finalized_once(order)


def test_batch_without_a_run_finalizes_too():
    orders(2)
    assert jobs.finalize_batch(Author("cli:bench")).counts == {"finalized": 2}


def worker(fault):
    """Start a worker whose lease soon expires, with a fault."""
    return manage("run_job", FINALIZE_JOB, "--json", **SHORT, RECOVERY_FAULTPOINTS=fault)


def finish_elsewhere():
    """Return what the next run does, once the lease of the last one has expired."""
    outcome = wait_until(lambda: (found := run_job(FINALIZE_JOB)).status != "skipped" and found)
    assert outcome.status == "ok"
    return outcome.result


def let_go():
    """Wait until the server has let go of what a killed worker held."""
    with transaction.atomic():
        list(SplitOrder.objects.select_for_update().values_list("pk"))


def test_worker_killed_with_a_convoy_leaves_nothing_behind():
    found = orders(4)
    before = contents()
    assert finished(worker("convoy.before_commit=crash"))[0] == -signal.SIGKILL
    assert contents() == before
    let_go()
    assert finish_elsewhere() == {"finalized": 4}
    for order in found:
        assert_finalized_once(order)
        assert (order.finalize_attempts, order.recovery_count) == (1, 0)
    assert not AuditRecord.objects.exists()


def test_worker_killed_after_the_commit_has_finalized_them():
    found = orders(4)
    assert finished(worker("convoy.after_commit=crash"))[0] == -signal.SIGKILL
    let_go()
    for order in found:
        assert_finalized_once(order)
    assert finish_elsewhere() == {}


@pytest.mark.mariadb
def test_worker_stopped_with_a_convoy_holds_its_orders_and_commits_nothing_when_it_wakes():
    found = orders(3)
    zombie = worker("convoy.before_commit=stop@1")
    wait_until(lambda: is_stopped(zombie))
    late = orders(2)
    assert finish_elsewhere() == {"finalized": 2}, "those that nobody holds"
    before = contents()
    zombie.send_signal(signal.SIGCONT)
    status, said = finished(zombie)
    assert (status, "was lost" in said["reason"]) == (1, True)
    assert contents() == before
    assert run_job(FINALIZE_JOB).result == {"finalized": 3}
    for order in found + late:
        assert_finalized_once(order)
        assert order.finalize_attempts == 1


@pytest.mark.mariadb
def test_worker_stopped_after_a_convoy_holds_nothing_and_writes_nothing_when_it_wakes():
    found = orders(3)
    zombie = worker("convoy.after_commit=stop@1")
    wait_until(lambda: is_stopped(zombie))
    late = orders(2)
    assert finish_elsewhere() == {"finalized": 2}
    before = contents()
    zombie.send_signal(signal.SIGCONT)
    finished(zombie)
    assert contents() == before
    for order in found + late:
        assert_finalized_once(order)


@pytest.mark.parametrize("where", ["before", "after"])
def test_error_in_a_convoy_charges_nobody(where):
    found = orders(3)
    status, said = finished(worker(f"convoy.{where}_commit=raise"))
    assert (status, said["status"]) == (1, "failed")
    assert "InjectedFaultError" in said["reason"]
    assert finish_elsewhere() == ({"finalized": 3} if where == "before" else {})
    for order in found:
        assert_finalized_once(order)
        assert order.finalize_attempts == 1
    assert not AuditRecord.objects.exists()


def test_no_statement_grows_beyond_what_servers_take():
    """MariaDB takes 16 MB unless told otherwise, many are told 1 MB."""
    quantity = Decimal(10) / 500
    for n in range(6):
        lines = [NewLine(it + 1, "piece", f"{'木' * 60}-{it:03d}", quantity) for it in range(500)]
        SplitOrderFactory(number=f"SO-{n}-{'x' * 100}", lines=lines)
    with CaptureQueriesContext(connection) as queries:
        assert len(together().arrived) == 6
    assert max(len(it["sql"].encode()) for it in queries) < 500_000


def test_packet_that_is_too_large_for_the_server_is_halved(monkeypatch):
    found = orders(3)
    genuine = convoy.outbox.publish_all

    def refuse(events):
        events = list(events)
        if len(events) > 1:
            raise OperationalError(1153, "Got a packet bigger than 'max_allowed_packet' bytes")
        genuine(events)

    monkeypatch.setattr(convoy.outbox, "publish_all", refuse)
    assert sorted(pks(together().arrived)) == sorted(pks(found))


@pytest.mark.mariadb
@pytest.mark.parametrize("size", [1, 50])
def test_orders_that_somebody_holds_do_not_hide_those_behind_them(other, settings, size):
    settings.JOB_FINALIZE_BATCH_SIZE = size
    settings.JOB_TIME_BUDGET_SEC = 600
    held, free = orders(jobs.ALONE + 5), orders(3)
    for order in held + free:
        tried(order)
    SplitOrder.objects.filter(pk__in=pks(held)).update(next_finalize_at="2020-01-01T00:00:00Z")
    ids = ",".join(map(str, pks(held)))
    other.execute(f"SELECT id FROM splits_splitorder FORCE INDEX (PRIMARY)"
                  f" WHERE id IN ({ids}) ORDER BY id FOR UPDATE")  # fmt: skip
    outcome = run_job(FINALIZE_JOB)
    assert (outcome.result, outcome.again) == ({"finalized": 3}, False)


@pytest.mark.mariadb
@pytest.mark.usefixtures("impatient")
def test_convoy_that_waits_in_vain_is_turned_back_at_once_and_all_go_alone(other):
    found = orders(4)
    code = f"{found[1].source_lot.code}-002"
    other.execute(
        "INSERT INTO splits_lot (code, sku, quantity, unit, status, root_code)"
        " VALUES (%s, 'OAK', 1, 'm2', 'available', %s)", [code, code]
    )  # fmt: skip
    with kept() as lines:
        outcome = run_job(FINALIZE_JOB)
    assert (outcome.status, outcome.result) == ("ok", {"finalized": 3, "postponed": 1})
    assert [line["event"] for line in lines].count("convoy_turned_back") == 1
    found[1].refresh_from_db()
    assert (found[1].status, found[1].finalize_attempts) == (OrderStatus.READY, 0)
    late = orders(2)
    SplitOrder.objects.due().update(next_finalize_at="2020-01-01T00:00:00Z")
    SplitOrder.objects.filter(pk=found[1].pk).update(next_finalize_at="2020-01-01T00:00:00Z")
    assert pks(together().arrived) == pks(late), "it goes alone from now on"


@pytest.fixture
def impatient():
    """Wait a second for a lock at most."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
    yield
    connection.close()


def test_order_that_failed_once_has_its_turn_though_new_ones_keep_coming(settings):
    old = SplitOrderFactory()
    tried(old)
    SplitOrder.objects.update(next_finalize_at="2020-01-01T00:00:00Z")
    orders(jobs.ALONE)
    settings.SPLIT_COMPLETION_TIMEOUT_SEC = 60
    with serving() as endpoint:
        settings.SPLIT_COMPLETION_WEBHOOK = endpoint.url
        assert jobs.finalize_batch(Author("cli:bench")).counts == {"finalized": jobs.ALONE}
    assert_finalized_once(old)


def test_no_more_lines_than_a_transaction_can_take_go_and_the_rest_stay_due(monkeypatch):
    monkeypatch.setattr(convoy, "MOST_LINES", 7)  # of three lines each
    found = orders(5)
    journey = together()
    assert (pks(journey.arrived), journey.left) == (pks(found)[:2], [])
    assert SplitOrder.objects.due().count() == 3
    assert run_job(FINALIZE_JOB).result == {"finalized": 3}


class OverRun:
    """A run whose time is spent."""

    deaths = 0

    def over(self):
        return True

    def renew_lease(self):
        """Keep it."""


def test_halving_ends_with_the_run(monkeypatch):
    found = orders(8)
    tries = []

    def refuse(events):
        tries.append(len(list(events)))
        raise ValueError("no")

    monkeypatch.setattr(convoy.outbox, "publish_all", refuse)
    assert sorted(together(run=OverRun()).left) == sorted(pks(found))
    assert tries == [8]


def test_order_that_nobody_claims_is_overdue_after_the_threshold(settings):
    settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC = 60
    young, old = orders(2)
    SplitOrder.objects.filter(pk=old.pk).update(next_finalize_at="2020-01-01T00:00:00Z")
    assert [it.pk for it in SplitOrder.objects.overdue(60)] == [old.pk]
    assert split_orders_overdue() == [({}, 1.0)]
    together()
    assert not SplitOrder.objects.overdue(60).exists()
    young.refresh_from_db()
