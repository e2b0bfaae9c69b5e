"""The completion endpoint: one POST under a deadline, the breaker, who is charged."""

import json
import socket
import time
from datetime import timedelta

import pytest

from recovery.clock import db_now
from recovery.models import AuditRecord
from splits import notify
from splits.finalize import Ending, finalize
from splits.models import Breaker, FinalizeStep, OrderStatus, SplitOrder
from tests.factories import AUTHOR, SplitOrderFactory
from tests.splits.endpoint import serving
from tests.splits.processes import finished, manage
from tests.splits.state import assert_finalized_once

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def endpoint(settings):
    with serving() as endpoint:
        settings.SPLIT_COMPLETION_WEBHOOK = endpoint.url
        settings.SPLIT_COMPLETION_TIMEOUT_SEC = 60  # ours, which answers, may be on a slow machine
        settings.SPLIT_COMPLETION_BREAKER_FAILURES = 3
        settings.SPLIT_COMPLETION_BREAKER_OPEN_SEC = 600
        yield endpoint


def attempt(order, *, now=True):
    outcome = finalize(order.pk, author=AUTHOR, now=now)
    order.refresh_from_db()
    return outcome


def open_breaker(endpoint) -> None:
    endpoint.status = 503
    for _ in range(3):
        attempt(SplitOrderFactory())
    assert Breaker.objects.get().opened_at is not None
    endpoint.bodies.clear()


def let_the_time_come() -> None:
    Breaker.objects.update(next_try_at=db_now() - timedelta(seconds=1))


def test_endpoint_is_told_what_came_out(endpoint):
    order = SplitOrderFactory()
    assert attempt(order).ending is Ending.FINALIZED
    assert_finalized_once(order)
    (body,), (headers,) = endpoint.bodies, endpoint.headers
    code = order.source_lot.code
    assert json.loads(body) == {
        "order_number": order.number,
        "event_key": order.event_key,
        "outputs": [
            {"code": f"{code}-{line}", "sku": sku, "quantity": quantity, "unit": "m2", "kind": kind}
            for line, sku, quantity, kind in (
                ("001", "OAK-S", "4.5", "piece"),
                ("002", "OAK-S", "4.5", "piece"),
                ("003", "OAK-OFF", "1", "offcut"),
            )
        ],
    }
    assert headers["Idempotency-Key"] == order.event_key
    assert headers["Content-Type"] == "application/json"


def test_nobody_is_told_where_no_endpoint_is_set(endpoint, settings):
    settings.SPLIT_COMPLETION_WEBHOOK = ""
    assert attempt(SplitOrderFactory()).ending is Ending.FINALIZED
    assert endpoint.bodies == []


@pytest.mark.parametrize("status", [400, 404, 302, 304])
def test_refusal_counts_against_the_order_alone(endpoint, status):
    endpoint.status = status
    order = SplitOrderFactory()
    outcome = attempt(order)
    assert (outcome.ending, outcome.code) == (Ending.FAILED, "endpoint_refused")
    assert str(status) in order.last_finalize_error
    assert (order.finalize_attempts, order.status) == (1, OrderStatus.READY)
    assert not Breaker.objects.filter(failures__gt=0).exists()


def test_redirect_is_not_followed(endpoint):
    endpoint.status, endpoint.location = 307, endpoint.url
    assert attempt(SplitOrderFactory()).code == "endpoint_refused"
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_failure_of_the_endpoint_is_counted_by_the_breaker(endpoint, status):
    endpoint.status = status
    order = SplitOrderFactory()
    outcome = attempt(order)
    assert (outcome.ending, outcome.code) == (Ending.FAILED, "endpoint_failed")
    breaker = Breaker.objects.get()
    assert breaker.endpoint == endpoint.url.removesuffix("/done?site=1")
    assert (breaker.failures, breaker.opened_at) == (1, None)


def test_every_try_sends_the_same_bytes_and_moves_stock_once(endpoint):
    order = SplitOrderFactory()
    endpoint.status = 500
    attempt(order)
    endpoint.status = 200
    assert attempt(order).ending is Ending.FINALIZED
    assert len(endpoint.bodies) == 2
    assert len(set(endpoint.bodies)) == 1
    assert_finalized_once(order)


def test_finalizer_killed_after_the_post_tells_again_with_the_same_bytes(endpoint):
    order = SplitOrderFactory()
    process = manage(
        "finalize", order.number,
        SPLIT_COMPLETION_WEBHOOK=endpoint.url,
        RECOVERY_FAULTPOINTS="finalize.in_step.notify=crash",
    )  # fmt: skip
    finished(process)
    SplitOrder.objects.update(finalize_in_progress=False)
    assert attempt(order).ending is Ending.FINALIZED
    assert len(endpoint.bodies) == 2
    assert len(set(endpoint.bodies)) == 1


def test_slow_drip_is_cut_at_the_deadline(endpoint, settings):
    settings.SPLIT_COMPLETION_TIMEOUT_SEC = 0.5
    endpoint.drip_s = 0.1
    began = time.monotonic()
    outcome = attempt(SplitOrderFactory())
    assert time.monotonic() - began < 40  # it drips for a minute
    assert (outcome.ending, outcome.code) == (Ending.FAILED, "endpoint_failed")
    assert "0.5 s" in outcome.error


def test_connection_that_is_never_accepted_is_cut_at_the_deadline(settings):
    settings.SPLIT_COMPLETION_TIMEOUT_SEC = 0.3
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        settings.SPLIT_COMPLETION_WEBHOOK = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        assert attempt(SplitOrderFactory()).code == "endpoint_failed"


def test_refused_connection_is_the_endpoints_fault(settings):
    with socket.socket() as taken:  # so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        settings.SPLIT_COMPLETION_WEBHOOK = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        outcome = attempt(SplitOrderFactory())
    assert outcome.code == "endpoint_failed"
    assert "ConnectionRefusedError" in outcome.error


def test_failures_of_several_orders_in_a_row_open_the_breaker(endpoint, caplog):
    open_breaker(endpoint)
    assert Breaker.objects.get().failures == 3
    assert [it for it in caplog.records if it.message == "completion_endpoint_down"]


def test_success_in_between_starts_the_count_anew(endpoint):
    for status in (503, 503, 200, 503, 503):
        endpoint.status = status
        attempt(SplitOrderFactory())
    breaker = Breaker.objects.get()
    assert (breaker.failures, breaker.opened_at) == (2, None)


def test_open_breaker_neither_tries_nor_charges(endpoint):
    open_breaker(endpoint)
    AuditRecord.objects.all()._raw_delete("default")
    order = SplitOrderFactory()
    outcome = attempt(order)
    assert (outcome.ending, outcome.code) == (Ending.POSTPONED, "endpoint_down")
    assert endpoint.bodies == []
    assert (order.status, order.finalize_in_progress) == (OrderStatus.READY, False)
    assert (order.finalize_attempts, order.last_finalize_error_code) == (0, "endpoint_down")
    assert order.next_finalize_at >= Breaker.objects.get().next_try_at
    assert not AuditRecord.objects.exists()
    assert FinalizeStep.objects.filter(order=order).count() == 4


def test_after_the_pause_exactly_one_order_tries(endpoint):
    open_breaker(endpoint)
    let_the_time_come()
    first, second = SplitOrderFactory(), SplitOrderFactory()
    assert attempt(first).ending is Ending.POSTPONED
    assert attempt(second).ending is Ending.POSTPONED
    assert len(endpoint.bodies) == 1
    assert first.finalize_attempts == 0
    # The one that tried waits a round longer: the next try is another order's.
    assert first.next_finalize_at - second.next_finalize_at > timedelta(seconds=500)


def test_success_closes_the_breaker(endpoint):
    open_breaker(endpoint)
    let_the_time_come()
    endpoint.status = 200
    assert attempt(SplitOrderFactory()).ending is Ending.FINALIZED
    breaker = Breaker.objects.get()
    assert (breaker.failures, breaker.opened_at, breaker.next_try_at) == (0, None, None)
    assert attempt(SplitOrderFactory()).ending is Ending.FINALIZED


def test_refusal_shows_that_the_endpoint_is_back(endpoint):
    open_breaker(endpoint)
    let_the_time_come()
    endpoint.status = 422
    assert attempt(SplitOrderFactory()).code == "endpoint_refused"
    assert Breaker.objects.get().opened_at is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://erp.example/x?y", "https://erp.example:443"),
        ("http://u:secret@ERP.example:81/", "http://erp.example:81"),
    ],
)
def test_origin_is_scheme_host_and_port(url, expected):
    assert notify.origin(notify.urlsplit(url)) == expected


def test_login_of_the_url_is_sent_as_basic_authorization(endpoint, settings):
    settings.SPLIT_COMPLETION_WEBHOOK = endpoint.url.replace("//", "//me:p%40ss@")
    assert attempt(SplitOrderFactory()).ending is Ending.FINALIZED
    assert endpoint.headers[0]["Authorization"] == "Basic bWU6cEBzcw=="
