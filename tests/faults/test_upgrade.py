"""Workers of this code beside newer code: its schema, its rows, its jobs; and the way back."""

import signal
from contextlib import closing
from datetime import timedelta

import pytest

from tests.faults.checker import connect, query, violations
from tests.faults.installation import installed, plan_rows
from tests.servers import free_port
from tests.waiting import eventually
from tests.web import Web, ask

pytestmark = [pytest.mark.mariadb, pytest.mark.timeout(600)]

ORDERS = 60
NEWER_JOB, NEWER_ACTION, NEWER_KEY = "sweepSamples", "samples.sweep", "lot:NEWER-1:received"
LOOK_AGAIN_S = 2
PATIENT = {"JOB_LOCK_TTL_SEC": "30", "DATABASE_READ_TIMEOUT_SEC": "30"}
"""Nobody is killed here: a run that is slow is neither dead nor failed."""
EXPANSION = (
    "ALTER TABLE ledger_outboxentry ADD COLUMN trace varchar(100) NULL",
    "ALTER TABLE ledger_outboxentry ADD COLUMN lane smallint NOT NULL DEFAULT 0",
    "ALTER TABLE ledger_outboxentry ADD INDEX newer_lane (lane, status)",
    "ALTER TABLE ledger_posting ADD COLUMN note varchar(50) NOT NULL DEFAULT ''",
    "ALTER TABLE splits_splitorder ADD COLUMN priority smallint NOT NULL DEFAULT 0",
    "ALTER TABLE splits_lot ADD COLUMN grade varchar(10) NULL",
    "ALTER TABLE splits_finalizestep ADD COLUMN took_ms int NULL",
    "ALTER TABLE recovery_jobrun ADD COLUMN version varchar(20) NOT NULL DEFAULT ''",
    "ALTER TABLE recovery_job ADD COLUMN version varchar(20) NOT NULL DEFAULT ''",
    "CREATE TABLE splits_newer (id bigint PRIMARY KEY AUTO_INCREMENT, order_id bigint NOT NULL,"
    " FOREIGN KEY (order_id) REFERENCES splits_splitorder (id))",
    "INSERT INTO django_migrations (app, name, applied) VALUES"
    " ('ledger', '9999_newer', UTC_TIMESTAMP(6)), ('splits', '9999_newer', UTC_TIMESTAMP(6)),"
    " ('recovery', '9999_newer', UTC_TIMESTAMP(6))",
)
"""What a migration of newer code may do while this code still works."""
ROWS = f"""
from django_q.models import Schedule
from ledger.models import OutboxEntry
from recovery.models import Job, Plan, PlanItem

OutboxEntry.objects.create(
    event_key={NEWER_KEY!r},
    event_type="lot-received",
    aggregate="lot:NEWER-1",
    payload={{"schema_version": 2, "moves": []}},
    content_hash="0" * 64,
)
Job.objects.make([{NEWER_JOB!r}])
Schedule.objects.create(
    name={NEWER_JOB!r},
    func="recovery.runner.run_task",
    args="({NEWER_JOB!r},)",
    schedule_type="C",
    cron="* * * * * */2",
)
plan = Plan.objects.create(
    action={NEWER_ACTION!r}, actor="cli:newer", reason="newer", status="running", rows_total=1
)
PlanItem.objects.create(plan=plan, row_id=1, label="SAMPLE-1")
"""
"""What newer code, already at work on other hosts, has left in the tables."""


def run(found, *statements):
    with closing(connect(found.database.url)) as link:
        for statement in statements:
            query(link, statement)
        link.commit()


def asked(found, sql):
    with closing(connect(found.database.url)) as link:
        return query(link, sql)


@pytest.fixture
def upgraded():
    """Return an installation whose schema is newer code's, with rows of that; no cluster yet."""
    again = {"JOB_OUTBOX_UNKNOWN_VERSION_DELAY_SEC": str(LOOK_AGAIN_S)}
    with installed(**again, **PATIENT) as found:
        run(found, *EXPANSION)
        left = found.manage("shell", "--no-imports", "-c", ROWS, env=found.environment)
        assert left.returncode == 0, left.stderr
        yield found


def test_workers_of_this_code_carry_on_with_the_schema_and_the_rows_of_newer_code(upgraded):
    found = upgraded
    rows = plan_rows(ORDERS)
    found.start_clusters(2)
    assert found.import_part("orders", rows).finish().returncode == 0
    finalized = "SELECT COUNT(*) FROM splits_splitorder WHERE status = 'finalized'"
    waiting = "SELECT COUNT(*) FROM ledger_outboxentry WHERE status <> 'posted'"
    done = (ORDERS, 1)  # the newer entry waits
    eventually(lambda: (found.count(finalized), found.count(waiting)) == done, deadline_s=300)
    assert_left_to_newer_code(found)
    assert [cluster.stop().returncode for cluster in found.clusters] == [0, 0]

    run(found, f"DELETE FROM ledger_outboxentry WHERE event_key = '{NEWER_KEY}'")
    with closing(connect(found.database.url)) as link:
        assert violations(link, rows) == []
    assert asked(found, "SELECT * FROM recovery_jobrun WHERE status <> 'ok'") == []
    assert asked(found, "SELECT * FROM django_q_task WHERE NOT success") == []


def assert_left_to_newer_code(found):
    """Assert that the workers met what they do not know, and left it as it was."""
    entry = f"FROM ledger_outboxentry WHERE event_key = '{NEWER_KEY}'"
    put_off = f"SELECT next_attempt_at {entry}"
    ((first,),) = asked(found, put_off)
    eventually(lambda: asked(found, put_off)[0][0] >= first + timedelta(seconds=LOOK_AGAIN_S))
    assert asked(found, f"SELECT status, attempts, last_error_code, lane {entry}") == [
        ("pending", 0, "", 0)
    ]
    eventually(lambda: "job_left_to_newer_code" in logged(found))
    eventually(lambda: "plan_left_to_newer_code" in logged(found))
    assert asked(found, f"SELECT fence FROM recovery_job WHERE name = '{NEWER_JOB}'") == [(0,)]
    assert asked(found, "SELECT name FROM django_q_schedule WHERE name = 'sweepSamples'")
    assert asked(found, "SELECT status, fence, carrier FROM recovery_plan") == [("running", 0, "")]
    assert asked(found, "SELECT status FROM recovery_planitem") == [("waiting",)]


def logged(found):
    return "".join(cluster.started.printed()[1] for cluster in found.clusters)


def test_web_of_this_code_stays_ready_on_newer_code_s_schema(upgraded):
    web = Web(upgraded.manage, **upgraded.environment, DEBUG="true")
    status, facts = web.ready()
    assert (status, facts["migrations"], facts["reasons"]) == (200, "ok", [])
    assert web.ask("/metrics")[0] == 200
    found = upgraded.manage("check", "--database", "default", env=upgraded.environment)
    assert found.returncode == 0, found.stderr


def test_workers_of_newer_code_wait_for_its_migrations_and_charge_nobody():
    rows = plan_rows(3)
    newest = "FROM django_migrations WHERE app = 'ledger' ORDER BY id DESC LIMIT 1"
    with installed() as found:
        ((name,),) = asked(found, f"SELECT name {newest}")
        assert found.import_part("orders", rows).finish().returncode == 0
        run(found, f"DELETE {newest}")
        port = free_port()
        waiting = found.manage.start("qcluster", "--metrics-port", str(port), env=found.environment)
        eventually(lambda: ask(port, "/readyz")[0] == 503)
        eventually(lambda: "migrations_awaited" in waiting.printed()[1])
        assert len(waiting.family()) == 2, "parent and side port, no worker"
        waiting.signal(signal.SIGTERM)
        assert waiting.finish().returncode == 0

        second = found.manage.start("qcluster", env=found.environment)
        eventually(lambda: "migrations_awaited" in second.printed()[1])
        assert asked(found, "SELECT * FROM recovery_jobrun") == []
        applied = f"('ledger', '{name}', UTC_TIMESTAMP(6))"
        run(found, f"INSERT INTO django_migrations (app, name, applied) VALUES {applied}")
        found.settle(orders=3, deadline_s=180)
        with closing(connect(found.database.url)) as link:
            assert violations(link, rows) == []
        assert found.count("SELECT SUM(attempts) FROM ledger_outboxentry") == 0


def test_tasks_signed_with_an_earlier_secret_key_are_dropped_and_cost_a_period_at_most():
    earlier, later = ({"SECRET_KEY": f"{word}-" * 10} for word in ("earlier", "later"))
    rows = plan_rows(3)
    with installed() as found:
        found.environment |= earlier
        assert found.import_part("orders", rows).finish().returncode == 0, "asks for a run"
        found.environment |= later
        found.start_clusters(1)
        found.settle(orders=3, deadline_s=180)
        assert "Failed to push task to queue" in logged(found)
        with closing(connect(found.database.url)) as link:
            assert violations(link, rows) == []
