"""Redis and MariaDB that go away and come back under a running cluster."""

import json
import os
import signal

import pytest
from django.conf import settings
from django.db import OperationalError, connection, transaction

from recovery import runner
from recovery.models import Job, JobRun
from recovery.registry import Batch
from tests import servers
from tests.faults.ledger import QUICK, posted, publish_one
from tests.processes import Manage
from tests.recovery.engine import NAME, client, register, row
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)


def events(finished):
    """Return the names of what was logged."""
    lines = [line for line in finished.stderr.splitlines() if line.startswith("{")]
    return [json.loads(line)["event"] for line in lines]


def test_cluster_outlives_a_restart_of_redis(redis_up, cluster):
    running_cluster = cluster(REDIS_TIMEOUT_SEC="10")  # one that is only slow is not away
    posted(publish_one())
    redis_up.kill()
    posted(publish_one())
    redis_up.start()
    posted(publish_one())
    finished = running_cluster.stop()
    assert finished.json()["restarts"] == 0
    assert 1 <= events(finished).count("redis_down") <= 2, "one an outage, but for a race"
    assert not JobRun.objects.filter(status__in=["failed", "died"]).exists()


def test_cluster_starts_and_works_with_redis_down(redis_up, cluster):
    redis_up.kill()
    running_cluster = cluster()
    posted(publish_one())
    assert Job.objects.get(name="processLedgerOutbox").fence > 0
    running_cluster.stop()


def test_cluster_outlives_a_frozen_redis(redis_up, cluster):
    # Once thawed it works what it was sent: a lock key may appear, and lasts for its time to live.
    running_cluster = cluster(**QUICK)
    posted(publish_one())
    redis_up.pause()
    posted(publish_one())
    redis_up.resume()
    posted(publish_one())
    assert running_cluster.stop().json()["restarts"] == 0


def test_cluster_outlives_a_flushed_redis(redis_up, cluster):
    running_cluster = cluster()
    posted(publish_one())
    client().flushall()
    posted(publish_one())
    running_cluster.stop()


@pytest.fixture
def private_mariadb():
    """Return a MariaDB server to kill."""
    with servers.mariadb() as server:
        yield server


@pytest.mark.mariadb
@pytest.mark.timeout(300)
def test_cluster_outlives_a_killed_database(private_mariadb, redis_up):
    manage = Manage()
    environment = {"DATABASE_URL": private_mariadb.url, "JOB_OUTBOX_PERIOD_SEC": "1"}

    def fence():
        jobs = manage("jobs", "--json", env=environment).json()
        return next(job["fence"] for job in jobs if job["job"] == "processLedgerOutbox")

    migrated = manage("migrate", env=environment)
    assert migrated.returncode == 0, migrated.stderr
    started = manage.start("qcluster", "--json", env=environment)
    try:
        eventually(lambda: fence() > 1)
        before = started.family()
        assert len(before) == settings.Q_CLUSTER["workers"] + 4
        last = fence()
        private_mariadb.kill()
        with pytest.raises(AssertionError):
            eventually(lambda: started.process.poll() is not None, deadline_s=5)
        assert len(started.family()) == len(before)
        private_mariadb.start()
        eventually(lambda: fence() > last + 2)
        started.signal(signal.SIGTERM)
        finished = started.finish()
    finally:
        manage.clean_up()
    assert finished.returncode == 0, finished.stderr
    assert finished.json()["restarts"] == 0
    told = events(finished)
    assert told.count("tick_without_database") == 1
    assert told.count("database_back") == 1
    assert told.count("queue_table_unreachable") == 1


@pytest.mark.mariadb
def test_connection_lost_in_the_middle_of_a_run_fails_it_on_the_record(
    rung, monkeypatch, second_connection
):
    def work(_run):
        with second_connection.cursor() as cursor:
            cursor.execute(f"KILL {connection.connection.thread_id()}")
        with transaction.atomic():
            Job.objects.create(name="halfDone")
        return Batch()

    register(monkeypatch, work)
    outcome = runner.run_job(NAME)
    assert outcome.status == "failed"
    assert outcome.reason.startswith("OperationalError")
    run = JobRun.objects.get()
    assert (run.status, run.pid) == ("failed", os.getpid())
    assert (row().lease_owner, row().last_status) == ("", "failed")
    assert not Job.objects.filter(name="halfDone").exists()


def test_database_gone_for_good_ends_the_run_without_an_error(rung, monkeypatch):
    def gone(*_args):
        raise OperationalError(2006, "Server has gone away")

    def work(_run):
        monkeypatch.setattr(runner, "_record", gone)
        monkeypatch.setattr(runner.wakeups, "_asked_in_row", gone)
        raise OperationalError(2006, "Server has gone away")

    register(monkeypatch, work)
    outcome = runner.run_job(NAME)
    assert (outcome.status, outcome.again) == ("failed", False)
    assert row().lease_owner, "it runs out by itself"
