"""What ``manage.py selfcheck`` asks of split orders: their limits, and those that wait."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings

from recovery.clock import db_now
from recovery.registry import Limit
from recovery.rehearsing import Rehearsal, UnprovenError
from recovery.selfcheck import Finding, Severity, examination
from recovery.selfcheck.findings import SOME, some
from splits import audit, stuck
from splits.audit import Author
from splits.finalize import claim, pursue
from splits.models import Breaker, Lot, OrderStatus, SplitOrder, SplitOrderQuerySet

HUNG_FOR = 2
"""Times the threshold."""


def _order(rehearsal: Rehearsal, number: int = 1, **columns: Any) -> SplitOrder:
    """Make a ready order without lines: no finalization gets beyond its first step."""
    key = f"{rehearsal.key}:{number}"
    lot = Lot.objects.create(code=key, sku="selfcheck", quantity=1, unit="pc", root_code=key)
    return SplitOrder.objects.create(
        number=key, source_lot=lot, status=OrderStatus.READY, **columns
    )


def orders_fail(rehearsal: Rehearsal) -> str:
    """Let an order fail at its last attempt; it must be failed for good."""
    made = max(0, settings.JOB_FINALIZE_RETRY_LIMIT - 1)
    order = _order(rehearsal, finalize_attempts=made)
    attempt = claim(order.pk, author=Author(rehearsal.actor), now=True)
    if attempt is None:
        raise UnprovenError("an order that is ready could not be claimed")
    pursue(attempt)
    order.refresh_from_db()
    ended = f"an order that failed at attempt {order.finalize_attempts} was {order.status}"
    if order.status != OrderStatus.FAILED:
        raise UnprovenError(ended)
    return ended


ORDERS_FAIL = Limit("JOB_FINALIZE_RETRY_LIMIT", orders_fail)


def orders_are_quarantined(rehearsal: Rehearsal) -> str:
    """Reset an order that hung as often as is allowed; one time more must quarantine it."""
    allowed = settings.JOB_STUCK_ALERT_THRESHOLD
    if allowed < 1:
        rehearsal.excuse(audit.RECOVERED)  # the first time is one too many
    else:
        _reset(rehearsal, 1, hung_before=0, goal=stuck.Result.RECOVERED)
    _reset(rehearsal, 2, hung_before=allowed, goal=stuck.Result.QUARANTINED)
    return f"an order that hung {allowed + 1} times was quarantined"


def _reset(rehearsal: Rehearsal, number: int, *, hung_before: int, goal: stuck.Result) -> None:
    now, threshold_s = db_now(), settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC
    order = _order(
        rehearsal,
        number,
        finalize_in_progress=True,
        finalize_epoch=1,
        finalize_progress_at=now - timedelta(seconds=HUNG_FOR * threshold_s),
        recovered_at=[now.isoformat()] * hung_before,
    )
    request = stuck.Request(author=Author(rehearsal.actor), threshold_s=threshold_s)
    found = stuck.Found(order.pk, order.number, order.finalize_epoch, order.finalize_attempts)
    result = stuck.recover_uncounted(found, request).result
    if result is not goal:
        raise UnprovenError(f"an order that hung {hung_before + 1} times was {result}, not {goal}")


ORDERS_ARE_QUARANTINED = Limit("JOB_STUCK_ALERT_THRESHOLD", orders_are_quarantined, least=0)


GAVE_UP = "Find the cause (last_finalize_error), then {}: docs/runbook.md, Orders that gave up."
REMEDIES = {
    "stuck": "Run manage.py recover_stuck: it resets them, or names who holds one.",
    "overdue": "See docs/runbook.md, A job does not run.",
    "failed": GAVE_UP.format("give them fresh attempts"),
    "quarantined": GAVE_UP.format("release them"),
}


@examination("split orders")
def orders_that_wait() -> Iterator[Finding]:
    """Look for orders that hang, that nobody claims, and that wait for an operator."""
    orders, threshold_s = SplitOrder.objects.all(), settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC
    yield from _waiting("stuck", orders.stuck(threshold_s))
    yield from _waiting("overdue", orders.overdue(threshold_s))
    yield from _waiting("failed", orders.filter(status=OrderStatus.FAILED))
    yield from _waiting("quarantined", orders.filter(status=OrderStatus.QUARANTINED))


def _waiting(state: str, found: SplitOrderQuerySet) -> Iterator[Finding]:
    count = found.count()
    if count:
        numbers = list(found.order_by("pk").values_list("number", flat=True)[:SOME])
        text = f"Split orders are {state}: {some(numbers, count)}."
        yield Finding(Severity.WARNING, f"orders-{state}", text, REMEDIES[state])


@examination("breaker")
def open_breakers() -> Iterator[Finding]:
    """Look for an endpoint that is not called any more."""
    for breaker in Breaker.objects.exclude(opened_at=None):
        yield Finding(
            Severity.WARNING,
            "breaker-open",
            f"{breaker.endpoint} could not be reached {breaker.failures} times in a row:"
            " orders wait before their last step.",
            "Try it from a worker's host; it closes by itself: docs/runbook.md,"
            " The breaker is open.",
        )
