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

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb, pytest.mark.redis]

QUICK = {
    "JOB_LOCK_TTL_SEC": "1",
    "REDIS_TIMEOUT_SEC": "0.5",
    "SPLIT_COMPLETION_TIMEOUT_SEC": "0.5",
    "JOB_OUTBOX_PERIOD_SEC": "1",
    "JOB_FINALIZE_PERIOD_SEC": "1",
    "JOB_STUCK_PERIOD_SEC": "1",
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC": "2",
    "JOB_BACKOFF_BASE_SEC": "0.1",
    "JOB_OUTBOX_MAX_ATTEMPTS": "2",
}


@pytest.fixture(autouse=True)
def _control_groups():
    yield
    for group in deadly.CGROUPS.glob("deadly-*"):
        with suppress(OSError):
            group.rmdir()


def deaths(job):
    """Return how many runs never ended; the next run says of the last one that it died."""
    return JobRun.objects.filter(job_id=job, status__in=["died", "running"]).count()


def test_order_that_kills_its_workers_is_quarantined_and_the_others_are_finalized(cluster):
    put("in", into("OAK", "1000"))
    drain()
    killer = SplitOrderFactory(number=f"{deadly.PREFIX}1")
    healthy = [SplitOrderFactory() for _ in range(30)]
    running = cluster(**QUICK, DJANGO_SETTINGS_MODULE="tests.faults.deadly")
    this = SplitOrder.objects.filter(pk=killer.pk)
    eventually(lambda: this.filter(status="quarantined").exists())
    assert not SplitOrder.objects.exclude(pk=killer.pk).exclude(status="finalized").exists()
    eventually(lambda: not OutboxEntry.objects.exclude(status="posted").exists())
    log = running.stop().stderr
    limit = settings.JOB_STUCK_ALERT_THRESHOLD + 1
    killer.refresh_from_db()
    assert (killer.recovery_count, killer.finalize_attempts) == (limit, limit)
    assert StuckSighting.objects.filter(order_ref=killer.pk).count() == limit
    assert deaths("finalizeRetryWorker") == limit
    records = list(AuditRecord.objects.order_by("id").values_list("action", "target_id"))
    reset = ("split-order-finalize-stuck-recovered", killer.number)
    assert records == [reset] * (limit - 1) + [("split-order-quarantined", killer.number)]
    assert log.count('"split_order_quarantined"') == 1
    assert_stopped_before_its_deadly_step(killer)
    for order in healthy:
        assert_finalized_once(order)
        assert (order.finalize_attempts, order.recovery_count) == (1, 0)
    assert_books_balance()
    assert Account.objects.get(code="stock:OAK").balance == 1_000 - 10 * len(healthy)


def assert_stopped_before_its_deadly_step(order):
    assert [step.name for step in order.steps.all()] == ["validate", "consume_source"]
    assert not order.outputs.exists()
    assert not OutboxEntry.objects.filter(event_key=order.event_key).exists()


def test_two_entries_that_kill_their_workers_end_dead_and_the_others_are_posted(cluster):
    store((f"good-{n}", f"lot:{n % 60}", into("OAK", "1")) for n in range(150))
    first, second = (put(f"bad-{n}", into("OAK", "100"), aggregate=f"lot:B{n}") for n in range(2))
    followers = [put(f"late-{n}", into("OAK", "100"), aggregate=f"lot:B{n}") for n in range(2)]
    store((f"more-{n}", f"lot:{n % 60}", into("OAK", "1")) for n in range(150))
    running = cluster(**QUICK, RECOVERY_FAULTPOINTS="outbox.entry:bad=crash")
    eventually(lambda: OutboxEntry.objects.filter(status="dead").count() == 2)
    eventually(lambda: OutboxEntry.objects.filter(status="posted").count() == 300)
    running.stop()
    for killer in (first, second):
        killer.refresh_from_db()
        assert (killer.status, killer.attempts, killer.last_error_code) == ("dead", 2, "unexpected")
    for follower in followers:
        follower.refresh_from_db()
        assert (follower.status, follower.attempts) == ("pending", 0)
    # Two until care is taken, then one an attempt of each.
    assert deaths(JOB) == 2 + 2 * 2
    assert AuditRecord.objects.filter(action="outbox-entry-dead").count() == 2
    assert_books_balance()
    assert Account.objects.get(code="stock:OAK").balance == 300
