"""What ``selfcheck`` asks of split orders."""

import pytest

from recovery import registry
from recovery.models import AuditRecord
from recovery.rehearsing import UnprovenError
from recovery.selfcheck import limits
from recovery.selfcheck.limits import is_limited
from splits import selfcheck, stuck
from splits.models import (
    Breaker,
    FinalizeStep,
    Lot,
    OrderStatus,
    SplitOrder,
    SplitOrderQuerySet,
    StuckSighting,
)
from tests.factories import SplitOrderFactory, hang

pytestmark = pytest.mark.django_db(transaction=True)


def assert_nothing_left():
    for model in (SplitOrder, Lot, FinalizeStep, StuckSighting, AuditRecord):
        assert not model.objects.exists(), model


@pytest.mark.parametrize("limit", [1, 2, 1_000])
def test_order_at_its_last_attempt_is_seen_to_fail(settings, limit):
    settings.JOB_FINALIZE_RETRY_LIMIT = limit
    seen = limits.walk(selfcheck.ORDERS_FAIL)
    assert seen.evidence == f"an order that failed at attempt {limit} was failed"
    assert seen.audited == {"split-order-finalize-failed", "split-order-finalize-retry-limit"}
    assert_nothing_left()


def test_order_that_is_tried_for_ever_is_told(monkeypatch):
    genuine = SplitOrderQuerySet.fail

    def again(self, epoch, **facts):
        return genuine(self, epoch, **facts | {"delay_s": 0})

    monkeypatch.setattr(SplitOrderQuerySet, "fail", again)
    with pytest.raises(UnprovenError, match="attempt 5 was ready"):
        is_limited(registry.get("finalizeRetryWorker"))


def test_order_that_cannot_be_claimed_is_told(monkeypatch):
    monkeypatch.setattr(selfcheck, "claim", lambda *_, **__: None)
    with pytest.raises(UnprovenError, match="could not be claimed"):
        is_limited(registry.get("finalizeRetryWorker"))


@pytest.mark.parametrize("allowed", [1, 3, 50])
def test_order_that_hangs_once_too_often_is_seen_in_quarantine(settings, allowed):
    settings.JOB_STUCK_ALERT_THRESHOLD = allowed
    seen = limits.walk(selfcheck.ORDERS_ARE_QUARANTINED)
    assert seen.evidence == f"an order that hung {allowed + 1} times was quarantined"
    assert seen.audited == {"split-order-finalize-stuck-recovered", "split-order-quarantined"}
    assert not seen.excused
    assert_nothing_left()


def test_order_that_is_reset_for_ever_is_told(monkeypatch):
    monkeypatch.setattr(stuck, "_verdict", lambda *_, **__: stuck.Result.RECOVERED)
    with pytest.raises(UnprovenError, match="hung 4 times was recovered, not quarantined"):
        is_limited(registry.get("recoverFinalizeStuck"))


def test_endpoint_is_not_called_by_the_walk(settings):
    settings.SPLIT_COMPLETION_WEBHOOK = "http://127.0.0.1:1/never"
    assert "was failed" in limits.walk(selfcheck.ORDERS_FAIL).evidence
    assert not Breaker.objects.exists()


def test_orders_that_go_their_way_are_not_told():
    SplitOrderFactory(at=OrderStatus.READY)
    SplitOrderFactory(at=OrderStatus.FINALIZED)
    hang(SplitOrderFactory(), age_s=10)
    assert list(selfcheck.orders_that_wait()) == []


@pytest.mark.parametrize("state", ["failed", "quarantined", "stuck", "overdue"])
def test_orders_that_wait_are_told_by_their_numbers(state, settings):
    settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC = 300
    for number in range(4):
        at = OrderStatus(state) if state in OrderStatus.values else OrderStatus.READY
        order = SplitOrderFactory(number=f"SO-{number}", at=at)
        if state == "stuck":
            hang(order)
        if state == "overdue":
            this = SplitOrder.objects.filter(pk=order.pk)
            this.update(next_finalize_at=order.created_at.replace(year=2020))
    (finding,) = selfcheck.orders_that_wait()
    assert finding.id == f"orders-{state}"
    assert finding.finding == f"Split orders are {state}: SO-0, SO-1, SO-2 and 1 more."
    assert finding.remedy


def test_open_breaker_is_told():
    Breaker.objects.create(endpoint="https://erp.example:443", failures=5)
    assert list(selfcheck.open_breakers()) == []
    Breaker.objects.all().open_after(5, open_s=600)
    (finding,) = selfcheck.open_breakers()
    assert finding.id == "breaker-open"
    assert "https://erp.example:443" in finding.finding
