"""The jobs of split orders, run as the queue runs them."""

import pytest
from django.db import connection

from recovery.models import AuditRecord, Job, JobRun
from recovery.runner import run_job
from splits import jobs, metrics
from splits.models import OrderStatus, SplitOrder
from tests.factories import SplitOrderFactory, hang
from tests.splits.state import assert_finalized_once

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def rows(settings):
    """The jobs' rows; no Redis."""
    settings.REDIS_URL = ""
    for name in ("finalizeRetryWorker", "recoverFinalizeStuck"):
        Job.objects.get_or_create(name=name)


def test_due_orders_are_finalized_though_one_fails():
    first, bad, last = SplitOrderFactory(), SplitOrderFactory(lines=()), SplitOrderFactory()
    draft = SplitOrderFactory(at=OrderStatus.DRAFT)
    outcome = run_job("finalizeRetryWorker")
    assert (outcome.status, outcome.result) == ("ok", {"finalized": 2, "failed": 1})
    for order in (first, last):
        assert_finalized_once(order)
    bad.refresh_from_db()
    assert bad.last_finalize_error_code == "no_lines"
    draft.refresh_from_db()
    assert draft.status == OrderStatus.DRAFT
    record = AuditRecord.objects.get()
    assert record.actor == "system:finalizeRetryWorker"
    assert record.run_id == JobRun.objects.get().run_id


@pytest.mark.parametrize("size", [1, 2])
def test_more_than_a_batch_is_worked_in_one_run(monkeypatch, settings, size):
    settings.JOB_FINALIZE_BATCH_SIZE = size
    settings.JOB_TIME_BUDGET_SEC = 600
    monkeypatch.setattr(jobs, "ALONE", 2)
    for _ in range(5):
        SplitOrderFactory()
    assert run_job("finalizeRetryWorker").result == {"finalized": 5}


def test_run_ends_with_its_time_budget_and_asks_for_another(settings):
    settings.JOB_TIME_BUDGET_SEC = 0
    SplitOrderFactory()
    outcome = run_job("finalizeRetryWorker")
    assert (outcome.result, outcome.again) == ({}, True)


def test_stuck_orders_are_reset_by_the_job():
    order, young = hang(SplitOrderFactory()), hang(SplitOrderFactory(), age_s=1)
    outcome = run_job("recoverFinalizeStuck")
    assert (outcome.status, outcome.result) == ("ok", {"recovered": 1})
    order.refresh_from_db()
    young.refresh_from_db()
    assert (order.finalize_in_progress, young.finalize_in_progress) == (False, True)
    record = AuditRecord.objects.get()
    assert record.actor == "system:recoverFinalizeStuck"
    assert record.run_id == JobRun.objects.get().run_id


def test_nothing_stuck_is_an_idle_run():
    assert run_job("recoverFinalizeStuck").result == {}


@pytest.mark.mariadb
def test_held_order_is_counted_and_named(caplog):
    order = hang(SplitOrderFactory())
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("START TRANSACTION")
            cursor.execute("SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE", [order.pk])
            outcome = run_job("recoverFinalizeStuck")
    finally:
        other.close()
    assert (outcome.status, outcome.result) == ("ok", {"held": 1})
    assert [it.order for it in caplog.records if it.message == "split_order_held"] == [order.number]


def test_gauges_count_the_orders_that_need_a_look():
    hang(SplitOrderFactory())
    hang(SplitOrderFactory(), age_s=1)
    SplitOrderFactory(at=OrderStatus.FAILED)
    SplitOrderFactory(at=OrderStatus.QUARANTINED)
    SplitOrderFactory(at=OrderStatus.FINALIZED)
    values = {labels["state"]: value for labels, value in metrics.split_orders()}
    assert values == {"in_progress": 2, "stuck": 1, "failed": 1, "quarantined": 1}
    assert SplitOrder.objects.count() == 5
