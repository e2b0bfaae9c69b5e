"""Operators' actions on split orders, as plans."""

from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ledger.models import OutboxEntry
from recovery import foreground, plans
from recovery.actions import RefusedError, RowHeldError, WrongParametersError
from recovery.foreground import Follower, repair
from recovery.models import AuditRecord, ItemStatus, PlanStatus
from recovery.plans import Pace, PlanError, Wanted
from recovery.runner import run_job
from splits import lifecycle
from splits.actions import Recover
from splits.lifecycle import NewLine
from splits.models import LineKind, Lot, LotStatus, OrderStatus, SplitOrder, StuckSighting
from tests.factories import AUTHOR, SplitOrderFactory, hang
from tests.ledger.entries import into, put

pytestmark = pytest.mark.django_db(transaction=True)


def fresh(order):
    return SplitOrder.objects.get(pk=order.pk)


def record(action):
    return AuditRecord.objects.get(action=action)


def test_each_action_leads_where_it_should_with_one_record():
    for action, at, goal, audited in (
        ("split.retry", OrderStatus.FAILED, OrderStatus.READY, "split-order-retried"),
        ("split.release", OrderStatus.QUARANTINED, OrderStatus.READY, "split-order-released"),
        ("split.cancel", OrderStatus.READY, OrderStatus.CANCELLED, "split-order-cancelled"),
        ("split.reverse", OrderStatus.FINALIZED, OrderStatus.REVERSED, "split-order-reversed"),
    ):
        order = SplitOrderFactory(at=at)
        plan = repair(action, [order.pk], actor="anna", reason="INC-9")
        assert fresh(order).status == goal
        found = record(audited)
        assert (found.actor, found.reason, found.evidence["plan"]) == ("anna", "INC-9", plan.pk)


def test_stuck_order_is_recovered_with_its_proof():
    order = hang(SplitOrderFactory())
    plan = repair("split.recover", [order.pk], actor="anna", reason="INC-9")
    assert not fresh(order).finalize_in_progress
    found = record("split-order-finalize-stuck-recovered")
    assert "granted" in found.evidence["proof"]["how"]
    assert found.evidence["plan"] == plan.pk


def test_young_order_is_left_alone():
    order = hang(SplitOrderFactory(), age_s=1)
    with pytest.raises(PlanError):
        repair("split.recover", [order.pk], actor="anna", reason="INC-9")
    assert fresh(order).finalize_in_progress


def test_reversal_is_guarded():
    order = SplitOrderFactory(at=OrderStatus.FINALIZED)
    OutboxEntry.objects.filter(event_key=order.event_key).update(status="discarded")
    plan = plans.create(Wanted("split.reverse", [order.pk], "anna", "x"))
    assert "discarded" in plan.items.get(status=ItemStatus.EXCLUDED).note


def test_each_order_that_cannot_be_reversed_is_left_out_with_its_own_reason():
    used, held, good = (SplitOrderFactory(at=OrderStatus.FINALIZED) for _ in range(3))
    Lot.objects.filter(pk=used.outputs.earliest("code").pk).update(status=LotStatus.CONSUMED)
    put("received", into("OAK", "100"))
    run_job("processLedgerOutbox")
    piece = NewLine(1, LineKind.PIECE, "X", Decimal(1))
    SplitOrderFactory(source_lot=held.outputs.latest("code"), lines=[piece])
    lost = SplitOrderFactory(at=OrderStatus.FINALIZED)
    OutboxEntry.objects.filter(event_key=lost.event_key).delete()
    wanted = Wanted("split.reverse", [it.pk for it in (used, held, lost, good)], "anna", "x")
    notes = dict(plans.create(wanted).items.values_list("row_id", "note"))
    assert f"{used.source_lot.code}-001" in notes[used.pk]
    assert f"{held.source_lot.code}-003" in notes[held.pk]
    assert lost.event_key in notes[lost.pk]
    assert notes[good.pk] == ""


def test_preview_of_reversals_asks_as_often_for_three_as_for_thirty():
    counts, longest = [], []

    def noting(execute, sql, params, *rest):
        longest.append(len(params or ()))
        return execute(sql, params, *rest)

    for more in (3, 27):
        for _ in range(more):
            SplitOrderFactory(at=OrderStatus.FINALIZED)
        ids = list(SplitOrder.objects.values_list("pk", flat=True))
        with (
            CaptureQueriesContext(connection) as asked,
            connection.execute_wrapper(noting),
        ):
            shown = list(plans.preview(Wanted("split.reverse", ids, "anna", "x")))
        assert [it.misfit for it in shown] == [""] * len(ids)
        assert max(longest) <= len(ids) + 5, "no value a lot: there may be thousands"
        counts.append(len(asked))
    assert counts == [counts[0]] * 2


def test_switch_that_is_neither_true_nor_false_is_refused():
    order = hang(SplitOrderFactory(), age_s=1)
    with pytest.raises(WrongParametersError, match="force is true or false"):
        plans.create(Wanted("split.recover", [order.pk], "anna", "x", {"force": "no"}))


def test_reset_is_noted_under_the_epoch_it_ended_though_a_worker_was_quicker(monkeypatch):
    order = hang(SplitOrderFactory())
    settle = Recover.settle

    def after_a_claim(self, row_id, result):
        assert SplitOrder.objects.filter(pk=row_id).claim("quick")
        settle(self, row_id, result)

    monkeypatch.setattr(Recover, "settle", after_a_claim)
    repair("split.recover", [order.pk], actor="anna", reason="x")
    assert fresh(order).finalize_epoch == 3
    assert list(StuckSighting.objects.values_list("epoch", flat=True)) == [1]


@pytest.mark.mariadb
def test_rows_that_are_held_do_not_hold_up_the_plan(second_connection, monkeypatch):
    """However the work is cut into slices, each slice gets further."""
    monkeypatch.setattr("recovery.jobs.SLICE_S", 0.2)
    orders = [SplitOrderFactory(at=OrderStatus.FAILED) for _ in range(4)]
    plan = plans.create(Wanted("split.retry", [it.pk for it in orders], "anna", "x"))
    plans.start(plan.pk, actor="anna")
    with second_connection.cursor() as cursor:
        cursor.execute("START TRANSACTION")
        for it in orders[:2]:
            cursor.execute("SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE", [it.pk])
        assert run_job(plans.JOB).status == "ok"
    assert plan.items.counts() == {ItemStatus.HELD: 2, ItemStatus.APPLIED: 2}


def test_row_whose_holder_is_gone_by_now_may_still_be_refused(monkeypatch):
    order = hang(SplitOrderFactory())
    tries = iter([True])
    lock = Recover.lock

    def held_at_first(self, row_id):
        if next(tries, False):
            raise RowHeldError
        return lock(self, row_id)

    def refuse(self, row, by):
        raise RefusedError("not now")

    monkeypatch.setattr(Recover, "lock", held_at_first)
    monkeypatch.setattr(Recover, "holder", lambda _self, _row_id: None)
    monkeypatch.setattr(Recover, "apply", refuse)
    plan = plans.create(Wanted("split.recover", [order.pk], "anna", "x"))
    plans.start(plan.pk, actor="anna", here=True)
    plan = Follower(plan.pk).to_its_end()
    assert plan.items.get().note == "not now"
    assert (plan.status, plan.items.get().status) == (PlanStatus.DONE, ItemStatus.FAILED)


def test_order_that_went_on_meanwhile_is_skipped():
    order = SplitOrderFactory(at=OrderStatus.FAILED)
    plan = plans.create(Wanted("split.retry", [order.pk], "anna", "x"))
    lifecycle.retry(order.pk, author=AUTHOR)
    plans.start(plan.pk, actor="anna", here=True)
    plan = Follower(plan.pk).to_its_end()
    assert AUTHOR.actor in plan.items.get(status=ItemStatus.DRIFTED).note


def test_canary_watches_the_first_attempt_to_finalize(monkeypatch):
    monkeypatch.setattr(foreground, "NUDGE_AFTER_S", 0.0)
    orders = [SplitOrderFactory(at=OrderStatus.FAILED) for _ in range(3)]
    wanted = Wanted("split.retry", [it.pk for it in orders], "anna", "x", pace=Pace(canary=(1,)))
    plan = plans.create(wanted)
    plans.start(plan.pk, actor="anna", here=True)
    plan = Follower(plan.pk).to_its_end()
    assert plan.status == PlanStatus.DONE
    assert {fresh(it).status for it in orders} == {OrderStatus.FINALIZED}


@pytest.mark.mariadb
def test_held_order_is_skipped_and_its_holder_named(second_connection):
    order = hang(SplitOrderFactory())
    with second_connection.cursor() as cursor:
        cursor.execute("START TRANSACTION")
        cursor.execute("SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE", [order.pk])
        cursor.execute("SELECT CONNECTION_ID()")
        (connection_id,) = cursor.fetchone()
        plan = plans.create(Wanted("split.recover", [order.pk], "anna", "x"))
        plans.start(plan.pk, actor="anna", here=True)
        plan = Follower(plan.pk).to_its_end()
    held = plan.items.get(status=ItemStatus.HELD)
    assert held.result["holder"]["connection_id"] == connection_id
    assert fresh(order).finalize_in_progress
