"""Finalize: claim, run, fail, fence; kills at every boundary."""

import signal
import threading
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from prometheus_client import REGISTRY

from recovery import leftovers
from recovery.clock import db_now, seconds_from_now
from recovery.leases import LeaseLostError
from recovery.models import AuditRecord
from splits import finalize as module
from splits import lifecycle, stuck
from splits.errors import FencedError
from splits.finalize import Ending, claim, finalize
from splits.models import FinalizeStep, OrderStatus, SplitOrder, StepName
from tests.factories import AUTHOR, SplitOrderFactory, hang
from tests.splits.processes import finished, is_stopped, manage, wait_until
from tests.splits.state import assert_finalized_once, assert_untouched

pytestmark = pytest.mark.django_db(transaction=True)

BOUNDARIES = [f"finalize.{where}.{step}" for step in StepName for where in
              ("before_step", "in_step", "after_step")] + ["finalize.before_finish"]  # fmt: skip


def actions() -> list[str]:
    return list(AuditRecord.objects.order_by("id").values_list("action", flat=True))


def retried() -> float:
    return REGISTRY.get_sample_value("finalize_retry_attempts_total") or 0.0


def test_ready_order_is_finalized_with_every_effect_once():
    order = SplitOrderFactory()
    outcome = finalize(order.pk, author=AUTHOR)
    assert outcome.ending is Ending.FINALIZED
    assert_finalized_once(order)
    assert (order.finalize_epoch, order.finalize_attempts) == (1, 1)
    assert actions() == []


@pytest.mark.parametrize(
    "at",
    [
        OrderStatus.DRAFT,
        OrderStatus.FAILED,
        OrderStatus.QUARANTINED,
        OrderStatus.CANCELLED,
        OrderStatus.FINALIZED,
        OrderStatus.REVERSED,
    ],
)
def test_only_ready_orders_can_be_claimed(at):
    order = SplitOrderFactory(at=at)
    assert claim(order.pk, author=AUTHOR, now=True) is None
    order.refresh_from_db()
    assert order.status == at


def test_order_in_progress_cannot_be_claimed_again():
    order = hang(SplitOrderFactory())
    assert claim(order.pk, author=AUTHOR, now=True) is None
    order.refresh_from_db()
    assert (order.finalize_epoch, order.finalize_attempts) == (1, 1)


@pytest.mark.parametrize(("delay_s", "is_due"), [(-0.5, True), (30, False)])
def test_order_is_due_by_the_databases_clock(delay_s, is_due):
    order = SplitOrderFactory()
    SplitOrder.objects.update(next_finalize_at=seconds_from_now(delay_s))
    assert (claim(order.pk, author=AUTHOR) is not None) is is_due


def test_now_claims_an_order_that_is_not_due():
    order = SplitOrderFactory()
    SplitOrder.objects.update(next_finalize_at=None)
    assert claim(order.pk, author=AUTHOR) is None
    assert claim(order.pk, author=AUTHOR, now=True).attempt == 1


@pytest.fixture
def commit_cut_once(monkeypatch):
    """Return what makes the answer to one COMMIT get lost, the first after which ``when`` holds."""

    def arm(when=lambda: True):
        commit, cuts = connection._commit, [OperationalError(2013, "lost in COMMIT")]

        def cut():
            commit()
            if cuts and when():
                raise cuts.pop()

        monkeypatch.setattr(connection, "_commit", cut)
        return cuts

    return arm


def test_claim_whose_commit_was_cut_is_found_again(commit_cut_once):
    order = SplitOrderFactory()
    commit_cut_once()
    attempt = claim(order.pk, author=AUTHOR)
    assert (attempt.epoch, attempt.attempt) == (1, 1)


def test_claim_whose_commit_was_cut_and_whose_lease_is_lost_is_given_back(commit_cut_once):
    order = SplitOrderFactory()
    commit_cut_once()
    with pytest.raises(LeaseLostError):
        claim(order.pk, author=AUTHOR, run=LosingRun(1))
    leftovers.settle()
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.finalize_attempts) == (False, 0)


@pytest.mark.mariadb
def test_order_that_was_left_is_not_waited_for_while_somebody_holds_it(
    second_connection, monkeypatch
):
    attempt = claim(SplitOrderFactory().pk, author=AUTHOR)
    monkeypatch.setattr(module, "with_retries", lambda action: action())
    with connection.cursor() as own, second_connection.cursor() as cursor:
        own.execute("SET innodb_lock_wait_timeout = 1")
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM splits_splitorder FOR UPDATE")
        assert module._pursue(attempt).ending is Ending.POSTPONED
        monkeypatch.setattr(module, "with_retries", lambda _action: pytest.fail("it waits"))
        leftovers.settle()
        cursor.execute("ROLLBACK")
        own.execute("SET innodb_lock_wait_timeout = 10")
    monkeypatch.undo()
    leftovers.settle()
    order = SplitOrder.objects.get()
    assert (order.finalize_in_progress, order.finalize_attempts) == (False, 0)


def test_failed_attempt_is_kept_audited_and_put_off(settings):
    settings.RECOVERY_FAULTPOINTS = "finalize.in_step.create_outputs=raise"
    order = SplitOrderFactory()
    before = db_now()
    outcome = finalize(order.pk, author=AUTHOR)
    assert (outcome.ending, outcome.code) == (Ending.FAILED, "unexpected")
    order.refresh_from_db()
    delay = timedelta(seconds=500)
    assert before + delay <= order.next_finalize_at <= db_now() + delay
    assert (order.status, order.finalize_in_progress) == (OrderStatus.READY, False)
    assert "injected" in order.last_finalize_error
    assert order.last_finalize_error_code == "unexpected"
    assert actions() == ["split-order-finalize-failed"]
    record = AuditRecord.objects.get()
    assert (record.actor, record.target_type, record.target_id) == (
        "cli:tester",
        "split-order",
        order.number,
    )
    assert record.evidence["attempt"] == 1
    assert [record.before["in_progress"], record.after["in_progress"]] == [True, False]


def test_failed_attempt_is_logged_with_its_stack(settings, caplog):
    settings.RECOVERY_FAULTPOINTS = "finalize.before_step.validate=raise"
    order = SplitOrderFactory()
    finalize(order.pk, author=AUTHOR)
    (record,) = [it for it in caplog.records if it.message == "finalize_failed"]
    assert record.exc_info
    assert (record.code, record.attempt, record.order) == ("unexpected", 1, order.number)


def test_next_attempt_goes_on_at_the_first_step_not_done(settings):
    settings.RECOVERY_FAULTPOINTS = "finalize.in_step.post_ledger=raise"
    order = SplitOrderFactory()
    finalize(order.pk, author=AUTHOR)
    settings.RECOVERY_FAULTPOINTS = ""
    before = retried()
    finalize(order.pk, author=AUTHOR, now=True)
    assert_finalized_once(order)
    epochs = dict(FinalizeStep.objects.values_list("name", "epoch"))
    assert [epochs[step] for step in StepName] == [1, 1, 1, 2, 2]
    assert retried() - before == 1


def test_first_attempt_is_no_retry():
    before = retried()
    finalize(SplitOrderFactory().pk, author=AUTHOR)
    assert retried() == before


def test_last_attempt_makes_the_order_failed(settings):
    settings.JOB_FINALIZE_RETRY_LIMIT = 2
    settings.RECOVERY_FAULTPOINTS = "finalize.before_step.validate=raise"
    order = SplitOrderFactory()
    finalize(order.pk, author=AUTHOR)
    order.refresh_from_db()
    assert order.status == OrderStatus.READY
    finalize(order.pk, author=AUTHOR, now=True)
    order.refresh_from_db()
    assert (order.status, order.next_finalize_at) == (OrderStatus.FAILED, None)
    assert actions() == ["split-order-finalize-failed"] * 2 + ["split-order-finalize-retry-limit"]
    assert_untouched(order)


def test_backoff_doubles_with_the_attempts_up_to_its_cap(settings):
    settings.RECOVERY_FAULTPOINTS = "finalize.before_step.validate=raise"
    order = SplitOrderFactory()
    for expected_s in (500, 1_000, 1_800):
        before, delay = db_now(), timedelta(seconds=expected_s)
        finalize(order.pk, author=AUTHOR, now=True)
        order.refresh_from_db()
        assert before + delay <= order.next_finalize_at <= db_now() + delay


def test_finalizer_that_was_reset_commits_nothing():
    order = SplitOrderFactory()
    attempt = claim(order.pk, author=AUTHOR)
    SplitOrder.objects.update(finalize_epoch=9)
    outcome = module._pursue(attempt)
    assert outcome.ending is Ending.FENCED
    assert not FinalizeStep.objects.exists()
    assert_untouched(order)
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.finalize_attempts) == (True, 1)


def test_failure_of_a_finalizer_that_was_reset_is_not_written():
    order = SplitOrderFactory()
    attempt = claim(order.pk, author=AUTHOR)
    SplitOrder.objects.update(finalize_epoch=9)
    assert module._fail(attempt, ValueError("late")).ending is Ending.FENCED
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.last_finalize_error) == (True, "")
    assert actions() == []


def failing(monkeypatch, error, *, times):
    """Let the validate step raise ``error`` the first ``times`` times."""
    left = [error] * times
    genuine = module.STEPS[StepName.VALIDATE]

    def validate(order):
        if left:
            raise left.pop()
        genuine(order)

    monkeypatch.setattr(module, "STEPS", {**module.STEPS, StepName.VALIDATE: validate})


def test_deadlock_is_tried_again_at_once(monkeypatch):
    order = SplitOrderFactory()
    failing(monkeypatch, OperationalError(1213, "deadlock"), times=2)
    assert finalize(order.pk, author=AUTHOR).ending is Ending.FINALIZED
    assert_finalized_once(order)
    assert order.finalize_attempts == 1


def test_infrastructure_error_is_not_charged(monkeypatch):
    order = SplitOrderFactory()
    failing(monkeypatch, OperationalError(1290, "read-only"), times=99)
    outcome = finalize(order.pk, author=AUTHOR)
    assert (outcome.ending, outcome.code) == (Ending.POSTPONED, "infrastructure")
    order.refresh_from_db()
    assert (order.status, order.finalize_in_progress) == (OrderStatus.READY, False)
    assert order.finalize_attempts == 0
    assert order.next_finalize_at > db_now()
    assert actions() == []


def test_step_whose_commit_was_cut_is_not_taken_twice(commit_cut_once):
    order = SplitOrderFactory()
    attempt = claim(order.pk, author=AUTHOR)
    cuts = commit_cut_once(FinalizeStep.objects.filter(name=StepName.CREATE_OUTPUTS).exists)
    assert module._pursue(attempt).ending is Ending.FINALIZED
    assert not cuts
    assert_finalized_once(order)


def test_finish_whose_commit_was_cut_counts_as_finished(commit_cut_once):
    order = SplitOrderFactory()
    attempt = claim(order.pk, author=AUTHOR)
    cuts = commit_cut_once(SplitOrder.objects.filter(status=OrderStatus.FINALIZED).exists)
    assert module._pursue(attempt).ending is Ending.FINALIZED
    assert not cuts
    assert_finalized_once(order)


class LosingRun:
    """A run whose lease is lost at its nth renewal."""

    actor = "system:finalizeRetryWorker"

    def __init__(self, renewals: int) -> None:
        self.renewals = renewals

    def renew_lease(self) -> None:
        self.renewals -= 1
        if self.renewals < 0:
            raise LeaseLostError("lost")

    def progressed(self) -> None:
        pass


@pytest.mark.mariadb
def test_connection_killed_within_a_step_is_replaced_and_the_step_taken_once(monkeypatch):
    order, kills = SplitOrderFactory(), ["once"]
    genuine = module.STEPS[StepName.CREATE_OUTPUTS]

    def killed_once(order):
        genuine(order)
        if kills:
            kills.pop()
            with connection.cursor() as cursor:
                cursor.execute("KILL CONNECTION CONNECTION_ID()")

    monkeypatch.setattr(module, "STEPS", {**module.STEPS, StepName.CREATE_OUTPUTS: killed_once})
    assert finalize(order.pk, author=AUTHOR).ending is Ending.FINALIZED
    assert not kills
    assert_finalized_once(order)
    assert order.finalize_attempts == 1


def test_lost_lease_rolls_the_step_back_and_gives_the_order_back():
    order = SplitOrderFactory()
    with pytest.raises(LeaseLostError):
        finalize(order.pk, author=AUTHOR, run=LosingRun(2))  # the claim, validate
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.finalize_attempts) == (False, 0)
    assert list(FinalizeStep.objects.values_list("name", flat=True)) == ["validate"]
    assert_untouched(order)


def test_lease_lost_at_the_end_does_not_finalize():
    order = SplitOrderFactory()
    with pytest.raises(LeaseLostError):
        finalize(order.pk, author=AUTHOR, run=LosingRun(6))  # the claim, five steps
    order.refresh_from_db()
    assert (order.status, order.finalize_in_progress) == (OrderStatus.READY, False)
    assert finalize(order.pk, author=AUTHOR).ending is Ending.FINALIZED
    assert_finalized_once(order)


def test_lease_lost_at_the_claim_claims_nothing():
    order = SplitOrderFactory()
    with pytest.raises(LeaseLostError):
        finalize(order.pk, author=AUTHOR, run=LosingRun(0))
    order.refresh_from_db()
    assert (order.finalize_epoch, order.finalize_in_progress) == (0, False)


def test_two_claimers_get_one_attempt():
    order = SplitOrderFactory()
    won, start = [], threading.Barrier(2)

    def take() -> None:
        start.wait()
        try:
            won.append(claim(order.pk, author=AUTHOR))
        finally:
            connection.close()

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(attempt is None for attempt in won) == [False, True]
    order.refresh_from_db()
    assert (order.finalize_epoch, order.finalize_attempts) == (1, 1)


def test_operators_interrupt_gives_the_order_back(monkeypatch):
    order = SplitOrderFactory()

    def interrupt(_order):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "STEPS", {**module.STEPS, StepName.CREATE_OUTPUTS: interrupt})
    with pytest.raises(KeyboardInterrupt):
        finalize(order.pk, author=AUTHOR)
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.finalize_attempts) == (False, 0)
    assert SplitOrder.objects.due().get() == order


@pytest.mark.sqlite  # on MariaDB all at once: tests/faults/test_every_fault_point.py
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_killed_finalizer_is_recovered_and_finalized_once(boundary):
    order = SplitOrderFactory()
    process = manage("finalize", order.number, RECOVERY_FAULTPOINTS=f"{boundary}=crash")
    assert finished(process)[0] == -signal.SIGKILL
    order.refresh_from_db()
    assert order.finalize_in_progress
    request = stuck.Request(author=AUTHOR, threshold_s=0)

    def reset() -> bool:  # the server may not have noticed the dead connection yet
        (found,) = stuck.find(request)
        return stuck.recover(found, request).result is stuck.Result.RECOVERED

    wait_until(reset)
    assert finalize(order.pk, author=AUTHOR).ending is Ending.FINALIZED
    assert_finalized_once(order)
    assert (order.finalize_attempts, order.recovery_count) == (2, 1)
    assert actions() == ["split-order-finalize-stuck-recovered"]


def test_finalizers_in_three_processes_finalize_each_order_once():
    orders = [SplitOrderFactory() for _ in range(12)]
    processes = [manage("finalize", "--all-ready", "--json") for _ in range(3)]
    documents = [finished(process)[1] for process in processes]
    finalized = [number for document in documents for number in document["finalized"]]
    assert sorted(finalized) == sorted(order.number for order in orders)
    for order in orders:
        assert_finalized_once(order)
        assert order.finalize_attempts == 1


def test_stopped_finalizer_that_wakes_after_a_reset_commits_nothing():
    order = SplitOrderFactory()
    process = manage(
        "finalize", order.number, "--json",
        RECOVERY_FAULTPOINTS="finalize.before_step.create_outputs=stop",
    )  # fmt: skip
    wait_until(lambda: is_stopped(process))
    request = stuck.Request(author=AUTHOR, threshold_s=0)
    (found,) = stuck.find(request)
    assert stuck.recover(found, request).result is stuck.Result.RECOVERED
    assert finalize(order.pk, author=AUTHOR).ending is Ending.FINALIZED
    process.send_signal(signal.SIGCONT)
    status, document = finished(process)
    assert status == 1
    assert [it["code"] for it in document["failed"]] == ["fenced"]
    assert_finalized_once(order)


def test_due_orders_are_read_by_the_index():
    SplitOrderFactory()
    due = SplitOrder.objects.due().order_by("next_finalize_at", "id").values_list("pk", flat=True)
    plan = due[:20].explain()
    assert "order_due" in plan
    assert "TEMP B-TREE" not in plan
    assert "filesort" not in plan


@pytest.mark.mariadb
def test_claim_does_not_wait_for_a_locked_row():
    order = SplitOrderFactory()
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("START TRANSACTION")
            cursor.execute("SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE", [order.pk])
            with connection.cursor() as own:
                own.execute("SET innodb_lock_wait_timeout = 50")  # who waited would wait so long
            began = db_now()
            assert claim(order.pk, author=AUTHOR) is None
            assert db_now() - began < timedelta(seconds=40)
            cursor.execute("ROLLBACK")
    finally:
        other.close()
        connection.close()
    assert claim(order.pk, author=AUTHOR) is not None


def test_finalizer_from_before_a_restore_leaves_the_next_claim_of_its_epoch_alone():
    order = SplitOrderFactory()
    stale = claim(order.pk, author=AUTHOR)
    # The backup does not know the order: imported again, it has its id and its epochs again.
    SplitOrder.objects.update(finalize_in_progress=False, finalize_epoch=0, finalize_owner="")
    fresh = claim(order.pk, author=AUTHOR)
    assert stale is not None
    assert fresh is not None
    assert (stale.order_id, stale.epoch) == (fresh.order_id, fresh.epoch)
    with pytest.raises(FencedError):
        module._finish(stale)
    assert module._fail(stale, RuntimeError("late")).ending is Ending.FENCED
    assert module._pursue(stale).ending is Ending.FENCED
    assert_untouched(order)
    assert module._pursue(fresh).ending is Ending.FINALIZED
    assert_finalized_once(order)


@pytest.fixture
def lot_held(second_connection):
    """Hold the lot of another order, as a finalizer that hangs would; waiting costs a second."""
    other = SplitOrderFactory()
    with second_connection.cursor() as cursor, connection.cursor() as own:
        cursor.execute("START TRANSACTION")
        cursor.execute("SELECT 1 FROM splits_lot WHERE id = %s FOR UPDATE", [other.source_lot_id])
        own.execute("SET innodb_lock_wait_timeout = 1")
        yield
        own.execute("SET innodb_lock_wait_timeout = 10")
        cursor.execute("ROLLBACK")


@pytest.mark.mariadb
def test_neither_finalizing_nor_reversing_waits_for_the_lot_of_another_order(lot_held):
    order = SplitOrderFactory()
    assert finalize(order.pk, author=AUTHOR).ending is Ending.FINALIZED
    assert lifecycle.reverse(order.pk, author=AUTHOR)
    assert_finalized_once(SplitOrderFactory(source_lot=order.source_lot, at=OrderStatus.FINALIZED))
