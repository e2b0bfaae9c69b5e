"""Operators' actions on split orders, as plans."""

import pytest

from ledger.models import OutboxEntry
from recovery import foreground, plans
from recovery.foreground import Follower, repair
from recovery.models import AuditRecord, ItemStatus, PlanStatus
from recovery.plans import Pace, PlanError, Wanted
from splits import lifecycle
from splits.models import OrderStatus, SplitOrder
from tests.factories import AUTHOR, SplitOrderFactory, hang

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
