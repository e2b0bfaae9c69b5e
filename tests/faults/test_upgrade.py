"""Upgrades without downtime: workers of before, on a database that newer code has prepared."""

import json

import pytest
from django.db import connection
from django_q.models import Schedule

from ledger.models import OutboxEntry
from recovery.clock import seconds_from_now
from recovery.models import Job
from splits.models import OrderStatus, SplitOrder
from tests.factories import SplitOrderFactory
from tests.faults.ledger import QUICK
from tests.ledger.entries import fresh, into, junk, put
from tests.recovery.engine import row
from tests.waiting import eventually
from tests.web import Web

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

NEWER_JOB = "jobOfTomorrow"
EXPANDED = (
    "ALTER TABLE ledger_outboxentry ADD COLUMN tomorrow VARCHAR(20) NOT NULL DEFAULT 'new'",
    "ALTER TABLE ledger_transaction ADD COLUMN tomorrow INT NULL",
    "ALTER TABLE splits_splitorder ADD COLUMN tomorrow DATETIME(6) NULL",
    "ALTER TABLE recovery_jobrun ADD COLUMN tomorrow INT NOT NULL DEFAULT 7",
    "ALTER TABLE recovery_auditrecord ADD COLUMN tomorrow VARCHAR(20) NOT NULL DEFAULT ''",
    "CREATE INDEX tomorrow ON splits_splitorder (finalized_at, id)",
    "CREATE TABLE recovery_tomorrow (id BIGINT PRIMARY KEY)",
    "INSERT INTO django_migrations (app, name, applied)"
    " VALUES ('splits', '9999_tomorrow', UTC_TIMESTAMP(6))",
)
"""What the migration of a release to come may do before its code is there."""
UNDONE = (
    *(
        f"ALTER TABLE {table} DROP COLUMN tomorrow"
        for table in (
            "ledger_outboxentry", "ledger_transaction", "splits_splitorder", "recovery_jobrun",
            "recovery_auditrecord",
        )
    ),
    "DROP INDEX tomorrow ON splits_splitorder",
    "DROP TABLE recovery_tomorrow",
    "DELETE FROM django_migrations WHERE name = '9999_tomorrow'",
)  # fmt: skip


@pytest.fixture
def expanded(transactional_db):
    """Prepare the database as newer code would; undo it."""
    with connection.cursor() as cursor:
        for statement in EXPANDED:
            cursor.execute(statement)
    yield
    with connection.cursor() as cursor:
        for statement in UNDONE:
            cursor.execute(statement)


def test_workers_of_before_go_on_with_a_database_that_is_ahead(redis_up, expanded, manage, cluster):
    put("stock", into("OAK", "1000"))
    orders = [SplitOrderFactory() for _ in range(5)]
    newer = junk("split-order:SO-NEW:finalized", {"schema_version": 99, "postings": []})
    Job.objects.create(name=NEWER_JOB)
    Schedule.objects.create(
        name=NEWER_JOB, func="recovery.runner.run_task", args=json.dumps([NEWER_JOB]),
        schedule_type=Schedule.CRON, cron="* * * * * */2", next_run=seconds_from_now(0),
    )  # fmt: skip
    web = Web(manage, **QUICK)
    running = cluster(
        **QUICK, JOB_FINALIZE_PERIOD_SEC="2", JOB_OUTBOX_UNKNOWN_VERSION_DELAY_SEC="1"
    )
    eventually(lambda: not SplitOrder.objects.exclude(status=OrderStatus.FINALIZED).exists())
    waiting = OutboxEntry.objects.exclude(pk=newer.pk).exclude(status="posted")
    eventually(lambda: not waiting.exists())
    seen = fresh(newer).next_attempt_at
    eventually(lambda: fresh(newer).next_attempt_at > seen)

    status, facts = web.ready()
    assert (status, facts["migrations"]) == (200, "ok"), facts
    stopped = running.stop()
    left = fresh(newer)
    assert (left.status, left.attempts, left.last_error_code) == ("pending", 0, ""), (
        "for newer code"
    )
    assert row(NEWER_JOB).last_started_at is None
    assert all(OutboxEntry.objects.filter(event_key=it.event_key).exists() for it in orders)
    assert "finalize_failed" not in stopped.stderr
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT tomorrow FROM ledger_outboxentry")
        assert cursor.fetchall() == (("new",),)


def test_workers_of_tomorrow_say_what_is_missing(manage, redis_up):
    """New code before its migration: not ready, and nothing is charged."""
    order = SplitOrderFactory()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'splits' AND name LIKE '0006%'")
        cursor.execute("ALTER TABLE splits_splitorder DROP COLUMN traceparent")
    try:
        web = Web(manage, **QUICK)
        status, facts = web.ready()
        assert status == 503
        assert facts["migrations"] == ["splits.0006_traceparent"]
        ran = manage("run_job", "finalizeRetryWorker", "--json", env=QUICK)
        assert (ran.returncode, ran.json()["status"]) == (1, "failed")
    finally:
        with connection.cursor() as cursor:
            cursor.execute(
                "ALTER TABLE splits_splitorder"
                " ADD COLUMN traceparent VARCHAR(55) NOT NULL DEFAULT ''"
            )
            cursor.execute(
                "INSERT INTO django_migrations (app, name, applied)"
                " VALUES ('splits', '0006_traceparent', UTC_TIMESTAMP(6))"
            )
    order.refresh_from_db()
    assert (order.status, order.finalize_attempts) == (OrderStatus.READY, 0)
