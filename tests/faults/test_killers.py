"""Orders and entries that kill their worker: found, isolated, put away; the others carry on."""

from contextlib import suppress

import pytest
from django.conf import settings

from ledger.models import Account, OutboxEntry
from ledger.outbox import JOB
from recovery.models import AuditRecord, JobRun
from splits.models import SplitOrder, StuckSighting
from tests.factories import SplitOrderFactory
from tests.faults import deadly
from tests.ledger.entries import assert_books_balance, drain, into, put, store
from tests.splits.state import assert_finalized_once
from tests.waiting import eventually

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.mariadb,
    pytest.mark.redis,
    pytest.mark.timeout(300),
]

QUICK = {
    "JOB_LOCK_TTL_SEC": "3",
    "REDIS_TIMEOUT_SEC": "0.5",
    "SPLIT_COMPLETION_TIMEOUT_SEC": "0.5",
    "JOB_OUTBOX_PERIOD_SEC": "1",
    "JOB_FINALIZE_PERIOD_SEC": "1",
    "JOB_STUCK_PERIOD_SEC": "1",
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC": "5",
    "JOB_BACKOFF_BASE_SEC": "0.1",
    "JOB_OUTBOX_MAX_ATTEMPTS": "2",
}
"""Nobody is taken for dead who is only slow: each death is counted."""


@pytest.fixture(autouse=True)
def _control_groups():
    yield
    for group in deadly.CGROUPS.glob("deadly-*"):
        with suppress(OSError):
            group.rmdir()


def deaths(job):
    """Return how many runs never ended; the next run says of the last one that it died."""
    return JobRun.objects.filter(job_id=job, status__in=["died", "running"]).count()


def test_killers_among_orders_and_entries_are_put_away_and_the_others_are_worked(cluster):
    """One order and two entries, all at once, among thirty and three hundred good ones."""
    put("in", into("OAK", "1000"))
    drain()
    killer = SplitOrderFactory(number=f"{deadly.PREFIX}1")
    healthy = [SplitOrderFactory() for _ in range(30)]
    store((f"good-{n}", f"lot:{n % 60}", into("ASH", "1")) for n in range(150))
    bad = [put(f"bad-{n}", into("ASH", "100"), aggregate=f"lot:B{n}") for n in range(2)]
    followers = [put(f"late-{n}", into("ASH", "100"), aggregate=f"lot:B{n}") for n in range(2)]
    store((f"more-{n}", f"lot:{n % 60}", into("ASH", "1")) for n in range(150))
    running = cluster(
        **QUICK,
        DJANGO_SETTINGS_MODULE="tests.faults.deadly",
        RECOVERY_FAULTPOINTS="outbox.entry:bad=crash",
    )
    this = SplitOrder.objects.filter(pk=killer.pk)
    eventually(lambda: this.filter(status="quarantined").exists(), deadline_s=180)
    assert not SplitOrder.objects.exclude(pk=killer.pk).exclude(status="finalized").exists()
    eventually(lambda: OutboxEntry.objects.filter(status="dead").count() == 2)
    eventually(lambda: OutboxEntry.objects.filter(status="posted").count() == 1 + 300 + 30)
    log = running.stop().stderr
    assert_quarantined(killer, log)
    assert_dead(bad, followers)
    for order in healthy:
        assert_finalized_once(order)
        assert (order.finalize_attempts, order.recovery_count) == (1, 0)
    assert_books_balance()
    assert Account.objects.get(code="stock:OAK").balance == 1_000 - 10 * len(healthy)
    assert Account.objects.get(code="stock:ASH").balance == 300


def assert_quarantined(order, log):
    """Assert that the order was reset as often as allowed, then put away, all on the record."""
    limit = settings.JOB_STUCK_ALERT_THRESHOLD + 1
    order.refresh_from_db()
    assert (order.recovery_count, order.finalize_attempts) == (limit, limit)
    assert StuckSighting.objects.filter(order_ref=order.pk).count() == limit
    # Once together with others, which costs none of them anything, then at each attempt.
    assert deaths("finalizeRetryWorker") == 1 + limit
    records = AuditRecord.objects.filter(target_type="split-order").order_by("id")
    reset = ("split-order-finalize-stuck-recovered", order.number)
    assert list(records.values_list("action", "target_id")) == [
        *[reset] * (limit - 1),
        ("split-order-quarantined", order.number),
    ]
    assert log.count('"split_order_quarantined"') == 1
    assert [step.name for step in order.steps.all()] == ["validate", "consume_source"]
    assert not order.outputs.exists()
    assert not OutboxEntry.objects.filter(event_key=order.event_key).exists()


def assert_dead(entries, followers):
    """Assert that the entries used up their attempts and those behind them none."""
    for entry in entries:
        entry.refresh_from_db()
        assert (entry.status, entry.attempts, entry.last_error_code) == ("dead", 2, "unexpected")
    for follower in followers:
        follower.refresh_from_db()
        assert (follower.status, follower.attempts) == ("pending", 0)
    # Two until care is taken, then one an attempt of each.
    assert deaths(JOB) == 2 + 2 * len(entries)
    assert AuditRecord.objects.filter(action="outbox-entry-dead").count() == len(entries)
