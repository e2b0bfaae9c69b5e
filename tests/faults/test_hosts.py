"""Three hosts on one database: one is cut off in the middle of its work, and comes back.

``SOAK=1`` tries process groups too where namespaces can be made.
"""

import os
import signal
from collections import Counter
from contextlib import suppress
from datetime import UTC, timedelta
from functools import partial
from itertools import groupby, pairwise

import pytest

from tests.faults.checker import connect, query, violations
from tests.faults.hosts import in_groups, in_namespaces, namespaces_can_be_made
from tests.faults.installation import csv_text, plan_rows
from tests.logs import count_events
from tests.processes import Manage
from tests.waiting import eventually

pytestmark = [pytest.mark.mariadb, pytest.mark.timeout(300)]

ORDERS = 60
PART = 6
SHORT = {
    "QCLUSTER_WORKERS": "7",
    "JOB_LOCK_TTL_SEC": "4",
    "JOB_OUTBOX_PERIOD_SEC": "2",
    "JOB_FINALIZE_PERIOD_SEC": "2",
    "JOB_STUCK_PERIOD_SEC": "5",
    "JOB_METRICS_PERIOD_SEC": "5",
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC": "10",
    "JOB_BACKOFF_BASE_SEC": "1",
    "SPLIT_COMPLETION_TIMEOUT_SEC": "1",
    "DATABASE_READ_TIMEOUT_SEC": "8",
    "REDIS_TIMEOUT_SEC": "3",
    "DATABASE_IDLE_TRANSACTION_SEC": "5",
}
CAUGHT = {"RECOVERY_FAULTPOINTS": "outbox.entry:lot=sleep:4@1,outbox.entry:split=sleep:4@1"}
"""Of the host that is cut: long enough to do so while it has locked what it posts to."""
LOOK_S = 2.0
UNWOKEN = {"recoverFinalizeStuck": 5, "metricsCollect": 5}
"""Jobs that run by their ticks alone, and their periods in seconds."""
SAID_WHEN_CUT = ("redis_down", "tick_without_database")
SAID_ONCE = (*SAID_WHEN_CUT, "redis_back", "database_back")


ISOLATED = namespaces_can_be_made()
SOAK = os.environ.get("SOAK") == "1"


@pytest.fixture(
    params=[
        pytest.param(
            in_namespaces,
            id="namespaces",
            marks=pytest.mark.skipif(not ISOLATED, reason="needs root and ip, unshare, nsenter"),
        ),
        pytest.param(
            in_groups,
            id="process groups",
            marks=pytest.mark.skipif(ISOLATED and not SOAK, reason="namespaces (SOAK=1: both)"),
        ),
    ]
)
def hosts(request):
    """Return three hosts and the database they share."""
    with request.param(3) as hosts:
        yield hosts


@pytest.fixture
def manage(hosts):
    """Return what runs ``manage.py``, the tables made; its processes end before their servers."""
    manage = Manage()
    try:
        migrated = manage("migrate", env=hosts.environment)
        assert migrated.returncode == 0, migrated.stderr
        yield manage
    finally:
        manage.clean_up()


@pytest.fixture
def link(hosts):
    """Return a connection to the database that no cut concerns."""
    link = connect(hosts.database.url)
    yield link
    link.close()


def test_host_that_is_cut_off_delays_nobody_and_comes_back_by_itself(hosts, manage, link, tmp_path):
    asked = partial(query, link)
    rows = plan_rows(ORDERS)
    parts = split(rows)
    clusters = [start(manage, host) for host in hosts.hosts[:2]]
    clusters.append(start(manage, hosts.hosts[2], **CAUGHT))
    for cluster in clusters:
        eventually(lambda cluster=cluster: log_of(cluster)["cluster_started"])
    lost = clusters[2]

    def bring(orders, environment):
        path = tmp_path / "part.csv"
        path.write_text(csv_text(orders), encoding="utf-8")
        done = manage("import_splits", str(path), "--finalize", "--json", env=environment)
        assert not done.json()["errors"]

    begin = now(asked)
    bring(next(parts), hosts.hosts[2].environment)
    while not shows(lambda: is_posting(lost, asked)):
        bring(next(parts), hosts.hosts[2].environment)
    cut = now(asked)
    hosts.hosts[2].cut()
    bring([row for part in parts for row in part], hosts.environment)
    eventually(lambda: all_done(asked), deadline_s=150)
    eventually(lambda: all(log_of(lost)[event] for event in SAID_WHEN_CUT))
    mended = now(asked)
    hosts.hosts[2].mend()
    eventually(lambda: ran_on(lost, asked, since=mended))

    logs = stop(clusters)
    assert [logs[2][event] for event in SAID_ONCE] == [1] * len(SAID_ONCE)
    assert not any(log[event] for log in logs[:2] for event in SAID_ONCE)
    assert violations(link, rows) == []
    no_runs_overlap(asked)
    for since, until in ((begin, cut), (cut + timedelta(seconds=10), mended)):
        each_tick_ran_once(asked, since, until)


def start(manage, host, **environment):
    environment = SHORT | host.environment | environment
    return manage.start("qcluster", "--json", env=environment, within=host.within)


def log_of(cluster):
    assert cluster.process.poll() is None, cluster.printed()
    return count_events(cluster.printed()[1])


def stop(clusters):
    """Stop all in order; return how often each logged what."""
    for cluster in clusters:
        cluster.signal(signal.SIGTERM)
    ended = [cluster.finish() for cluster in clusters]
    for finished in ended:
        assert finished.returncode == 0, finished.stderr
        assert finished.json()["restarts"] == 0
    return [count_events(finished.stderr) for finished in ended]


def shows(condition):
    """Tell whether ``condition`` comes true before long."""
    with suppress(AssertionError):
        return eventually(condition, deadline_s=LOOK_S)
    return False


def is_posting(cluster, asked):
    """Tell whether the cluster has rows locked in a run of the outbox, and does nothing."""
    runs = asked(
        "SELECT pid FROM recovery_jobrun WHERE status = 'running'"
        " AND job_id = 'processLedgerOutbox'"
    )
    locking = asked(
        "SELECT 1 FROM information_schema.innodb_trx"
        " WHERE trx_rows_locked > 1 AND trx_query IS NULL"
        " AND trx_started < NOW() - INTERVAL 1 SECOND"
    )
    return bool(locking) and {pid for (pid,) in runs} & cluster.family()


def split(rows):
    orders = [list(order) for _, order in groupby(rows, lambda row: row["order_number"])]
    for first in range(0, len(orders), PART):
        yield [row for order in orders[first : first + PART] for row in order]


def now(asked):
    return asked("SELECT UTC_TIMESTAMP(6)")[0][0]


def all_done(asked):
    ((finalized, waiting),) = asked(
        "SELECT (SELECT COUNT(*) FROM splits_splitorder WHERE status = 'finalized'),"
        " (SELECT COUNT(*) FROM ledger_outboxentry WHERE status <> 'posted')"
    )
    return (finalized, waiting) == (ORDERS, 0)


def ran_on(cluster, asked, *, since):
    pids = asked(f"SELECT pid FROM recovery_jobrun WHERE status = 'ok' AND started_at > '{since}'")
    return {pid for (pid,) in pids} & cluster.family()


def no_runs_overlap(asked):
    """Assert that of each job a run began only when the one before it had ended."""
    runs = asked("SELECT job_id, fence, started_at, finished_at FROM recovery_jobrun"
                 " ORDER BY job_id, fence")  # fmt: skip
    for earlier, later in pairwise(runs):
        if earlier[0] == later[0]:
            assert earlier[3] is not None
            assert earlier[3] <= later[2]


def each_tick_ran_once(asked, since, until):
    for job, period_s in UNWOKEN.items():
        starts = asked(
            f"SELECT started_at FROM recovery_jobrun WHERE job_id = '{job}'"
            f" AND started_at BETWEEN '{since}' AND '{until}'"
        )
        slots = Counter(at.replace(tzinfo=UTC).timestamp() // period_s for (at,) in starts)
        assert set(slots.values()) <= {1}, (job, slots)
