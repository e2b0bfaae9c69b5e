"""Real clusters told to stop in the middle of their work, and clusters that lose their heads."""

import json
import os
import signal
import sys
from functools import partial

import pytest

from ledger.models import OutboxEntry, Transaction
from ledger.outbox import JOB
from recovery.leases import HOST
from recovery.models import Job, JobRun
from splits.lifecycle import FINALIZE_JOB
from splits.models import OrderStatus, SplitOrder
from tests.factories import SplitOrderFactory
from tests.faults.clusters import Cluster
from tests.faults.ledger import QUICK, held, is_posted, posted, publish_one, running
from tests.processes import Started, environment
from tests.recovery.engine import client, row
from tests.splits.state import assert_finalized_once, assert_untouched
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

SHORT_GRACE_S = 2
UNTICKED = {"JOB_OUTBOX_PERIOD_SEC": "86400", "REDIS_TIMEOUT_SEC": "3"}
"""Environment of a cluster whose outbox runs for an entry alone: an idle run stops there too.

And which does not go without a Redis that is only slow: the last heartbeat is in it.
"""
PATIENT = UNTICKED | {"JOB_LOCK_TTL_SEC": "60"}
"""The same, and a run that is held keeps its lock."""
IMPATIENT = f"""
import sys
from django.core.management import execute_from_command_line
import django
django.setup()
from recovery import cluster
cluster.GRACE_S = {SHORT_GRACE_S}
execute_from_command_line(["manage.py", "qcluster", "--json"])
"""


@pytest.fixture
def impatient(manage):
    """Return what starts a cluster whose grace is short."""

    def start(**extra):
        command = [sys.executable, "-c", IMPATIENT]
        manage.started.append(Started(command, environment() | extra))
        return Cluster(manage.started[-1])

    return start


def assert_let_go(job, status):
    """Assert that nobody holds the lock of ``job`` and that its heartbeat says how it ended."""
    now = row(job)
    assert (now.lease_owner, now.lease_expires_at) == ("", None)
    assert now.last_status == status
    assert not client().exists(f"lock:job:{job}")
    beat = json.loads(client().get(f"job:heartbeat:{job}"))
    assert (beat["status"], beat["host"]) == (status, HOST)
    assert (beat["fence"], beat["pid"]) == (now.fence, now.heartbeat_pid)
    run = JobRun.objects.filter(job_id=job).latest("id")
    assert (beat["run_id"], run.status) == (str(run.run_id), status)


def stop_in_the_middle(cluster):
    """Stop the cluster in order and then let the run go on, which is held in its batch."""
    finished = cluster.stop(resuming=True)
    assert "cluster_killed" not in finished.stderr, "it ended within its grace"
    assert finished.json()["stopped_by"] == "SIGTERM"


def test_batch_under_way_is_ended_its_lock_released_and_its_heartbeat_final(redis_up, cluster):
    running_cluster = cluster(RECOVERY_FAULTPOINTS="outbox.before_commit=stop@1", **PATIENT)
    entry = publish_one()
    eventually(held)
    assert client().exists(f"lock:job:{JOB}")
    stop_in_the_middle(running_cluster)
    assert is_posted(entry)
    assert_let_go(JOB, "ok")
    assert not Job.objects.exclude(lease_owner="").exists()
    assert not JobRun.objects.filter(status="running").exists()


def test_finalization_under_way_is_ended_and_the_next_is_not_begun(redis_up, cluster):
    orders = [SplitOrderFactory() for _ in range(3)]
    fault = {"RECOVERY_FAULTPOINTS": "finalize.in_step.create_outputs=stop@1"}
    running_cluster = cluster(**fault, **PATIENT)
    eventually(partial(held, FINALIZE_JOB))
    stop_in_the_middle(running_cluster)
    assert_finalized_once(orders[0])
    for order in orders[1:]:
        order.refresh_from_db()
        assert (order.status, order.finalize_epoch) == (OrderStatus.READY, 0)
        assert_untouched(order)
    assert_let_go(FINALIZE_JOB, "ok")
    assert not SplitOrder.objects.filter(finalize_in_progress=True).exists()


def test_worker_that_hangs_past_the_grace_is_killed_and_its_batch_rolled_back(
    redis_up, cluster, impatient
):
    hanging = impatient(RECOVERY_FAULTPOINTS="outbox.before_commit=stop@1", **QUICK | UNTICKED)
    entry = publish_one()
    run = eventually(held)
    hanging.started.signal(signal.SIGTERM)
    done = hanging.started.finish()
    assert done.returncode == 1
    assert "cluster_killed" in done.stderr
    assert not hanging.started.family()
    assert not Transaction.objects.exists()
    works_again(cluster, entry, run)


def works_again(cluster, entry, run):
    """Assert that another cluster does what ``run`` left undone, and charges nobody for it."""
    healthy = cluster(**QUICK)
    posted(entry)
    run.refresh_from_db()
    assert run.status == "died"
    assert Transaction.objects.count() == 1
    assert not OutboxEntry.objects.exclude(attempts=0).exists()
    healthy.stop()


def test_second_signal_ends_everything_at_once(redis_up, cluster):
    running_cluster = cluster(RECOVERY_FAULTPOINTS="outbox.before_commit=stop@1", **UNTICKED)
    publish_one()
    eventually(held)
    running_cluster.started.signal(signal.SIGTERM)
    eventually(lambda: "cluster_stopping" in running_cluster.started.printed()[1])
    running_cluster.started.signal(signal.SIGTERM)
    finished = running_cluster.started.finish()
    assert finished.returncode == 1
    assert "cluster_killed" not in finished.stderr, "the grace was not waited for"
    assert not running_cluster.started.family()
    assert not Transaction.objects.exists()


def test_worker_whose_parent_was_killed_ends_its_batch_and_then_itself(redis_up, cluster):
    # Not stopped: the kernel hangs up on what is stopped and has lost its parent.
    fault = {"RECOVERY_FAULTPOINTS": "outbox.before_commit=sleep:3@1"}
    running_cluster = cluster(**fault, **UNTICKED)
    entry = publish_one()
    run = eventually(running)
    running_cluster.kill(running_cluster.parent)
    eventually(lambda: not running_cluster.started.family())
    assert is_posted(entry)
    run.refresh_from_db()
    assert (run.status, run.counts) == ("ok", {"posted": 1})
    assert_let_go(JOB, "ok")


def test_parent_and_sentinel_killed_at_once_leave_nobody_at_work(redis_up, cluster):
    fault = {"RECOVERY_FAULTPOINTS": "outbox.before_commit=sleep:600@1"}
    running_cluster = cluster(**fault, **QUICK | UNTICKED)
    entry = publish_one()
    run = eventually(running)
    heads = (running_cluster.parent, running_cluster.sentinel)
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in heads:
            os.kill(pid, signum)
    eventually(lambda: not running_cluster.started.family())
    assert not is_posted(entry)
    works_again(cluster, entry, run)
