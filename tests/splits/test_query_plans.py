"""Hot statements on split orders read those that are due or hang, however many are finalized."""

from functools import partial

import pytest

from splits import metrics, stuck
from splits.audit import Author
from splits.models import Lot, OrderStatus, SplitOrder
from tests.tables import Sql, let_plan, moment, plan_of, plans_of, reads_at_most, store_many, text

pytestmark = pytest.mark.django_db(transaction=True)  # ANALYZE commits

MANY, FEW = 50_000, 50
ORDERS = SplitOrder._meta.db_table
STUCK = stuck.Request(author=Author("system:test", reason=""), threshold_s=60)


@pytest.fixture
def finalized():
    """Store many orders that are finalized, and a few of each other state, the newest."""
    store_many(Lot, 1, id=1, code="B", sku="OAK", quantity=1, unit="m2", root_code="B")
    states = ["ready", "failed", "quarantined", "hangs", "later", "works"]
    older = f"n <= {MANY - len(states) * FEW}"
    kind = Sql(f"CASE WHEN {older} THEN -1 ELSE n % {len(states)} END")
    store_many(
        SplitOrder,
        MANY,
        id=Sql("n"),
        number=text("SO-{n}"),
        source_lot=1,
        status=Sql(
            f"CASE {kind} WHEN -1 THEN 'finalized' WHEN 1 THEN 'failed'"
            " WHEN 2 THEN 'quarantined' ELSE 'ready' END"
        ),
        finalize_in_progress=Sql(f"CASE WHEN {kind} IN (3, 5) THEN 1 ELSE 0 END"),
        finalize_progress_at=Sql(
            f"CASE WHEN {kind} = 5 THEN {moment('n', '2100-01-01 00:00:00')} ELSE {moment('n')} END"
        ),
        next_finalize_at=Sql(
            f"CASE {kind} WHEN 0 THEN {moment('n')}"
            f" WHEN 4 THEN {moment('n', '2100-01-01 00:00:00')} END"
        ),
    )
    let_plan(SplitOrder)


def test_due_orders_are_read_in_the_order_of_their_index(finalized):
    due = SplitOrder.objects.due().order_by("next_finalize_at", "id")
    for columns in (["pk"], ["pk", "finalize_attempts"]):
        found = due.values_list(*columns)[:200]
        assert len(found) == FEW
        plan = plan_of(found)
        assert plan.indexes == {"order_due"}, plan
        assert not plan.sorts, plan
        assert reads_at_most(4 * FEW, partial(list, due.values_list(*columns)[:200])), plan


def test_backlog_of_due_orders_is_read_no_further_than_asked_for(finalized):
    SplitOrder.objects.filter(status=OrderStatus.FINALIZED).update(
        status=OrderStatus.READY, next_finalize_at="2026-01-01T00:00:00Z"
    )
    let_plan(SplitOrder)
    due = SplitOrder.objects.due().order_by("next_finalize_at", "id")
    plan = plan_of(due.values_list("pk")[:200])
    assert plan.indexes == {"order_due"}, plan
    assert not plan.sorts, plan
    assert reads_at_most(4 * FEW, partial(list, due.values_list("pk")[:200])), plan


def test_orders_that_hang_are_found_among_those_in_progress(finalized):
    assert len(list(stuck.find(STUCK))) == FEW
    for plan in plans_of(lambda: list(stuck.find(STUCK)), ORDERS):
        assert plan.indexes == {"order_stuck"}, plan
    assert reads_at_most(4 * FEW, lambda: list(stuck.find(STUCK)))


def test_crowd_of_orders_that_hang_is_found_without_reading_the_others(finalized):
    """As after a crash of all hosts: by its primary key MariaDB would walk to the newest."""
    SplitOrder.objects.filter(pk__gt=MANY - 1_000).update(
        status=OrderStatus.READY,
        finalize_in_progress=True,
        finalize_progress_at="2026-01-01T00:00:00Z",
    )
    let_plan(SplitOrder)
    found = []
    assert reads_at_most(3_000, lambda: found.extend(stuck.find(STUCK)))
    assert len({it.order_id for it in found}) == 1_000


def test_gauges_read_no_finalized_order(finalized):
    values = {labels["state"]: value for labels, value in metrics.split_orders()}
    expected = {"in_progress": 2 * FEW, "stuck": FEW, "failed": FEW, "quarantined": FEW}
    assert values == expected
    assert metrics.split_orders_overdue() == [({}, FEW)]
    for gauge in (metrics.split_orders, metrics.split_orders_overdue):
        for plan in plans_of(gauge, ORDERS):
            assert plan.indexes <= {"order_stuck", "order_status_id", "order_due"}, plan
            assert not plan.scans, plan
        assert reads_at_most(6 * FEW, gauge)
