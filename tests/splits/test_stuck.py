"""Stuck finalizations: found by age, proven free, reset once, quarantined when it goes on."""

import threading
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from prometheus_client import REGISTRY

from recovery.clock import db_now
from recovery.leases import LeaseLostError
from recovery.models import AuditRecord, Job, JobRun
from splits import holders, stuck
from splits.models import OrderStatus, SplitOrder, StuckSighting
from splits.stuck import Recovery, Request, Result
from tests.factories import AUTHOR, SplitOrderFactory, hang
from tests.splits.recovering import recover_all

pytestmark = pytest.mark.django_db(transaction=True)

THRESHOLD_S = 300


def request(**kwargs) -> Request:
    return Request(author=AUTHOR, threshold_s=kwargs.pop("threshold_s", THRESHOLD_S), **kwargs)


def recover(order, **kwargs) -> Recovery:
    wanted = request(**kwargs)
    (found,) = stuck.find(wanted, [order.number])
    recovery = stuck.recover(found, wanted)
    order.refresh_from_db()
    return recovery


def detected() -> float:
    return REGISTRY.get_sample_value("job_stuck_detected_total") or 0.0


def resets() -> float:
    return REGISTRY.get_sample_value("finalize_recoveries_total") or 0.0


@pytest.mark.parametrize(("age_s", "is_stuck"), [(200, False), (310, True)])
def test_order_is_stuck_past_the_threshold(age_s, is_stuck):
    hang(SplitOrderFactory(), age_s=age_s)
    assert bool(list(stuck.find(request()))) is is_stuck


@pytest.mark.parametrize("at", list(OrderStatus))
def test_order_that_is_not_in_progress_is_not_stuck(at):
    SplitOrderFactory(at=at)
    assert list(stuck.find(request(threshold_s=0))) == []


def test_all_stuck_orders_are_found_by_id():
    numbers = [hang(SplitOrderFactory()).number for _ in range(5)]
    assert [found.number for found in stuck.find(request())] == numbers


def test_order_that_hangs_again_since_it_was_found_is_left_to_the_next_search():
    order = hang(SplitOrderFactory())
    (found,) = stuck.find(request())
    assert stuck.recover(found, request()).result is Result.RECOVERED
    hang(order)
    assert stuck.recover(found, request()).result is Result.GONE
    order.refresh_from_db()
    assert (order.finalize_epoch, order.recovery_count) == (3, 1)


def test_reset_makes_the_order_due_again_with_proof_in_the_audit_record():
    order = hang(SplitOrderFactory())
    progress_at = order.finalize_progress_at
    assert recover(order).result is Result.RECOVERED
    assert (order.status, order.finalize_in_progress) == (OrderStatus.READY, False)
    assert (order.finalize_epoch, order.finalize_attempts, order.recovery_count) == (2, 1, 1)
    assert len(order.recovered_at) == 1
    assert SplitOrder.objects.due().get() == order
    record = AuditRecord.objects.get()
    assert (record.action, record.actor, record.reason, record.target_id) == (
        "split-order-finalize-stuck-recovered",
        "cli:tester",
        "because",
        order.number,
    )
    evidence = record.evidence
    assert (evidence["epoch"], evidence["threshold_s"]) == (1, THRESHOLD_S)
    assert evidence["progress_at"] == progress_at.isoformat()
    assert 1_000 <= evidence["age_s"] < 1_300
    assert "was granted" in evidence["proof"]["how"]
    assert evidence["finalizer"] == "dead-host:1:token"


def test_reset_wakes_the_finalizer(monkeypatch):
    order, woken = hang(SplitOrderFactory()), []
    monkeypatch.setattr("recovery.wakeups.wake", woken.append)
    recover(order)
    assert woken == ["finalizeRetryWorker"]


def test_no_retry_leaves_the_order_to_an_operator():
    order = hang(SplitOrderFactory())
    assert recover(order, due=False).result is Result.RECOVERED
    assert (order.status, order.next_finalize_at) == (OrderStatus.READY, None)


def test_stuck_order_is_reset_once_by_two_recoverers():
    order = hang(SplitOrderFactory())
    wanted = request()
    (found,) = stuck.find(wanted)
    assert stuck.recover(found, wanted).result is Result.RECOVERED
    assert stuck.recover(found, wanted).result is Result.GONE
    order.refresh_from_db()
    assert (order.recovery_count, order.finalize_epoch) == (1, 2)
    assert AuditRecord.objects.count() == 1


def test_order_that_made_progress_meanwhile_is_left_alone():
    order = hang(SplitOrderFactory())
    wanted = request()
    (found,) = stuck.find(wanted)
    SplitOrder.objects.filter(pk=order.pk).progress(1)
    assert stuck.recover(found, wanted).result is Result.GONE
    order.refresh_from_db()
    assert order.finalize_in_progress


def test_order_whose_attempts_are_used_up_is_failed(settings):
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    order = hang(SplitOrderFactory())
    assert recover(order).result is Result.FAILED
    assert (order.status, order.next_finalize_at) == (OrderStatus.FAILED, None)
    assert list(AuditRecord.objects.order_by("id").values_list("action", flat=True)) == [
        "split-order-finalize-stuck-recovered",
        "split-order-finalize-retry-limit",
    ]


@pytest.mark.parametrize(("earlier", "quarantined"), [(2, False), (3, True)])
def test_order_recovered_too_often_is_quarantined(earlier, quarantined, caplog):
    order = hang(SplitOrderFactory())
    SplitOrder.objects.update(recovered_at=[db_now().isoformat()] * earlier)
    recovery = recover(order)
    assert (recovery.result is Result.QUARANTINED) is quarantined
    assert (order.status == OrderStatus.QUARANTINED) is quarantined
    alarms = [it for it in caplog.records if it.message == "split_order_quarantined"]
    assert bool(alarms) is quarantined
    action = AuditRecord.objects.get().action
    assert (action == "split-order-quarantined") is quarantined


def test_quarantine_is_judged_before_the_retry_limit(settings):
    settings.JOB_STUCK_ALERT_THRESHOLD = 0
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    assert recover(hang(SplitOrderFactory())).result is Result.QUARANTINED


def test_recoveries_before_the_window_do_not_count(settings):
    order = hang(SplitOrderFactory())
    old = db_now() - timedelta(seconds=settings.JOB_STUCK_ALERT_WINDOW_SEC + 60)
    SplitOrder.objects.update(recovered_at=[old.isoformat()] * 9, recovery_count=9)
    assert recover(order).result is Result.RECOVERED
    assert (len(order.recovered_at), order.recovery_count) == (1, 10)


def test_finalizer_that_always_hangs_ends_in_quarantine(settings):
    settings.JOB_FINALIZE_RETRY_LIMIT = 100
    order = SplitOrderFactory()
    results = [recover(hang(order)).result for _ in range(4)]
    assert results == [Result.RECOVERED] * 3 + [Result.QUARANTINED]


def test_stuck_epoch_is_counted_once_though_it_is_seen_often():
    order = hang(SplitOrderFactory())
    wanted = request()
    (found,) = stuck.find(wanted)
    before = detected()
    stuck.note(found, Recovery(order.number, Result.HELD))
    stuck.note(found, Recovery(order.number, Result.HELD))
    recover(order)
    assert detected() - before == 1
    recover(hang(order))
    assert detected() - before == 2
    assert StuckSighting.objects.count() == 2


def test_reset_is_counted_though_its_sighting_cannot_be_noted(monkeypatch):
    def lost(*_args):
        raise OperationalError(2006, "Server has gone away")

    order = hang(SplitOrderFactory())
    before = REGISTRY.get_sample_value("finalize_recoveries_total")
    monkeypatch.setattr(StuckSighting.objects.all().__class__, "first_time", lost)
    with pytest.raises(OperationalError, match="gone away"):
        recover(order)
    assert REGISTRY.get_sample_value("finalize_recoveries_total") == before + 1


HOLDER = holders.Holder(connection_id=7, user="erp", host="db-client", age_s=9, query="UPDATE it")


def test_record_of_the_reset_says_who_was_seen_to_hold_the_order():
    order = hang(SplitOrderFactory())
    StuckSighting.objects.first_time(order.pk, 1)
    StuckSighting.objects.of(order.pk, 1).note_holder(HOLDER.as_dict())
    held_at = StuckSighting.objects.get().held_at
    recover(order)
    evidence = AuditRecord.objects.get().evidence
    assert evidence["held_before"] == {"at": held_at.isoformat(), **HOLDER.as_dict()}


def test_record_of_the_reset_says_nothing_of_who_held_an_earlier_epoch():
    order = hang(SplitOrderFactory())
    StuckSighting.objects.first_time(order.pk, 0)
    StuckSighting.objects.of(order.pk, 0).note_holder(HOLDER.as_dict())
    recover(order)
    assert "held_before" not in AuditRecord.objects.get().evidence


def runs_at(now, *ages_s):
    """Leave runs of a job that began so many seconds before ``now``."""
    job = Job.objects.get_or_create(name="processLedgerOutbox")[0]
    JobRun.objects.bulk_create(
        JobRun(job=job, fence=n, host="h", pid=1, started_at=now - timedelta(seconds=age_s))
        for n, age_s in enumerate(ages_s)
    )


BUSY = (1_005, 1_015, 1_025)
"""Ages of runs just before the last progress of an order that hangs since 1,000 s."""


@pytest.mark.parametrize(
    ("ages_s", "age_s", "charged"),
    [
        (BUSY, 1_000, False),
        ((*BUSY, 990), 1_000, False),  # the outage began a moment after the last progress
        ((*BUSY, 980), 1_000, True),  # others went on working: it was the finalizer
        ((*BUSY, 945), 1_000, True),
        ((*BUSY, 935), 1_000, False),
        (BUSY[1:], 1_000, True),  # too few runs to tell
        ((), 1_000, True),
        ((35, 45, 52), 30, True),  # too early to tell
    ],
)
def test_attempt_after_which_all_work_stood_still_is_not_charged(ages_s, age_s, charged, settings):
    settings.JOB_FINALIZE_RETRY_LIMIT = 1
    order = hang(SplitOrderFactory(), age_s=age_s)
    runs_at(order.finalize_progress_at + timedelta(seconds=age_s), *ages_s)
    recovery = recover(order, threshold_s=10)
    assert recovery.result is (Result.FAILED if charged else Result.RECOVERED)
    assert order.finalize_attempts == charged
    assert AuditRecord.objects.last().evidence["attempt_charged"] is charged
    assert order.recovery_count == 1


def test_resets_are_counted():
    before = resets()
    recover(hang(SplitOrderFactory()))
    assert resets() - before == 1


def test_nothing_is_counted_without_metrics(settings):
    settings.METRICS_ENABLED = False
    before = detected(), resets()
    recover(hang(SplitOrderFactory()))
    assert (detected(), resets()) == before


def test_force_resets_a_young_one():
    order = hang(SplitOrderFactory(), age_s=1)
    assert list(stuck.find(request())) == []
    assert recover(order, force=True).result is Result.RECOVERED


def test_force_releases_a_quarantined_one():
    order = SplitOrderFactory(at=OrderStatus.QUARANTINED)
    assert list(stuck.find(request())) == []
    assert recover(order, force=True).result is Result.RELEASED
    assert (order.status, order.recovery_count, order.recovered_at) == (OrderStatus.READY, 0, [])
    assert AuditRecord.objects.get().action == "split-order-released"


def test_force_without_retry_leaves_a_released_one_to_an_operator():
    order = SplitOrderFactory(at=OrderStatus.QUARANTINED)
    recover(order, force=True, due=False)
    assert (order.status, order.next_finalize_at) == (OrderStatus.READY, None)


class LostRun:
    """A run that has lost its lease."""

    def renew_lease(self) -> None:
        raise LeaseLostError("lost")


def test_reset_under_a_lost_lease_is_rolled_back():
    order = hang(SplitOrderFactory())
    with pytest.raises(LeaseLostError):
        recover(order, run=LostRun())
    order.refresh_from_db()
    assert order.finalize_in_progress
    assert not AuditRecord.objects.exists()


def test_stuck_orders_are_read_by_the_index():
    plan = SplitOrder.objects.stuck(THRESHOLD_S).values_list("pk", flat=True).explain()
    assert "order_stuck" in plan


@pytest.fixture
def holding():
    """Hold an order's row in a transaction of another connection; return that one's id."""
    other = connection.copy()

    def hold(order) -> int:
        with other.cursor() as cursor:
            cursor.execute("START TRANSACTION")
            cursor.execute("SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE", [order.pk])
            cursor.execute("SELECT CONNECTION_ID()")
            return cursor.fetchone()[0]

    def release() -> None:
        with other.cursor() as cursor:
            cursor.execute("ROLLBACK")  # of one that is merely closed the server may hear later
        other.close()

    hold.release = release
    yield hold
    other.close()


@pytest.mark.mariadb
def test_held_order_is_left_alone_and_its_holder_named(holding, caplog):
    order = hang(SplitOrderFactory())
    connection_id = holding(order)
    with connection.cursor() as cursor:
        cursor.execute("SET innodb_lock_wait_timeout = 100")  # who waited would wait so long
    began = db_now()
    wanted = request()
    (found,) = stuck.find(wanted)
    (recovery,) = recover_all([found], wanted)
    took = db_now() - began
    connection.close()
    assert recovery.result is Result.HELD
    holder = recovery.holder
    assert holder.connection_id == connection_id
    assert holder.user == connection.settings_dict["USER"]
    assert holder.host.startswith(("localhost", "127.0.0.1"))
    assert 0 <= holder.age_s < 100
    assert holder.command == "Sleep"
    assert took < timedelta(seconds=80)
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.finalize_epoch) == (True, 1)
    assert not AuditRecord.objects.exists()
    (record,) = [it for it in caplog.records if it.message == "split_order_held"]
    assert record.holder["connection_id"] == connection_id


@pytest.mark.mariadb
def test_held_order_does_not_hold_up_the_others(holding):
    held, free = hang(SplitOrderFactory()), hang(SplitOrderFactory())
    holding(held)
    wanted = request()
    results = [(it.number, it.result) for it in recover_all(stuck.find(wanted), wanted)]
    assert results == [(free.number, Result.RECOVERED), (held.number, Result.HELD)]


@pytest.mark.mariadb
def test_order_is_recovered_after_all_when_its_holder_goes(holding):
    order = hang(SplitOrderFactory())
    holding(order)
    wanted = request()
    (found,) = stuck.find(wanted)
    assert stuck.recover(found, wanted).result is Result.HELD
    holding.release()
    assert stuck.name_holder(found, wanted).result is Result.RECOVERED


@pytest.mark.mariadb
def test_holder_is_unknown_without_the_privilege_and_the_hint_says_which(holding, monkeypatch):
    order = hang(SplitOrderFactory())
    holding(order)
    monkeypatch.setattr(holders, "MARIADB", "SELECT 1 FROM mysql.no_such_table WHERE %s")
    monkeypatch.setattr(holders, "MYSQL", "SELECT 1 FROM mysql.no_such_table WHERE %s")
    holder = holders.find_holder(order.pk)
    assert holder.connection_id is None
    assert "GRANT PROCESS" in holder.hint


def test_two_recoverers_at_once_reset_once():
    hang(SplitOrderFactory())
    wanted = request()
    (found,) = stuck.find(wanted)
    results, start = [], threading.Barrier(2)

    def run() -> None:
        start.wait()
        try:
            results.append(stuck.recover(found, wanted).result)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(Result.RECOVERED) == 1
    assert SplitOrder.objects.get().recovery_count == 1


@pytest.mark.sqlite
def test_order_behind_another_writer_is_held_though_nothing_can_be_noted(
    second_connection, monkeypatch, caplog
):
    order = hang(SplitOrderFactory())
    caplog.set_level("INFO", "splits.stuck")
    wanted = request()
    with monkeypatch.context() as impatient, second_connection.cursor() as other:
        impatient.setitem(connection.settings_dict["OPTIONS"], "timeout", 0.01)
        connection.close()
        other.execute("BEGIN IMMEDIATE")
        (recovery,) = recover_all(stuck.find(wanted), wanted)
        other.execute("ROLLBACK")
        connection.close()
    assert recovery.result is Result.HELD
    assert "one write lock" in recovery.holder.hint
    assert "sighting_not_noted" in caplog.text
    assert recover(order).result is Result.RECOVERED
