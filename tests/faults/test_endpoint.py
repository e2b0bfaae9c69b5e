"""A completion endpoint that is dead for a while, a real cluster, forty orders."""

from collections import defaultdict

import pytest
from django.conf import settings

from ledger.models import OutboxEntry
from splits.models import Breaker, SplitOrder
from tests.factories import SplitOrderFactory
from tests.ledger.entries import assert_books_balance, drain, into, put
from tests.splits.endpoint import serving
from tests.splits.state import assert_finalized_once
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb, pytest.mark.redis]

ORDERS = 40
FAILURES = 3
QUICK = {
    "JOB_FINALIZE_PERIOD_SEC": "1",
    "JOB_BACKOFF_BASE_SEC": "0.1",
    "SPLIT_COMPLETION_BREAKER_FAILURES": str(FAILURES),
    "SPLIT_COMPLETION_BREAKER_OPEN_SEC": "0.5",
}


def test_dead_endpoint_uses_up_no_orders_attempts_and_everybody_is_told_at_last(cluster):
    put("in", into("OAK", "1000"))
    drain()
    with serving() as endpoint:
        endpoint.status = 503
        orders = [SplitOrderFactory() for _ in range(ORDERS)]
        running = cluster(**QUICK, SPLIT_COMPLETION_WEBHOOK=endpoint.url)
        postponed = SplitOrder.objects.filter(last_finalize_error_code="endpoint_down")
        eventually(lambda: postponed.count() >= ORDERS - FAILURES)
        # More trials fail than any order has attempts, and nobody is charged for them.
        trials = FAILURES + settings.JOB_FINALIZE_RETRY_LIMIT + 1
        eventually(lambda: len(endpoint.bodies) >= trials)
        assert not SplitOrder.objects.exclude(status="ready").exists()
        assert sum(SplitOrder.objects.values_list("finalize_attempts", flat=True)) <= FAILURES + 1
        endpoint.status = 204
        eventually(lambda: not SplitOrder.objects.exclude(status="finalized").exists())
        eventually(lambda: not OutboxEntry.objects.exclude(status="posted").exists())
        running.stop()
    told = defaultdict(list)
    for headers, body in zip(endpoint.headers, endpoint.bodies, strict=True):
        told[headers["Idempotency-Key"]].append(body)
    assert set(told) == {order.event_key for order in orders}
    for bodies in told.values():
        assert len(set(bodies)) == 1
    for order in orders:
        assert_finalized_once(order)
        assert order.finalize_attempts <= settings.JOB_FINALIZE_RETRY_LIMIT
        assert order.recovery_count == 0
    assert Breaker.objects.get().opened_at is None
    assert_books_balance()
