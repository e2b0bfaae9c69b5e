"""Real clusters: woken, stopped, and killed piece by piece."""

import os
import signal
from contextlib import suppress
from datetime import timedelta
from functools import partial

import pytest
from django_q.models import Schedule

from ledger.models import OutboxEntry, Transaction
from ledger.outbox import JOB
from recovery.clock import db_now
from recovery.models import Job, JobRun
from tests.faults.ledger import QUICK, held, is_posted, posted, publish_one
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

DAY_S = 86_400
WHILE = timedelta(seconds=40)


def works(cluster):
    """Assert that what is published is posted, and that the cluster then stops in order."""
    posted(publish_one())
    return cluster.stop()


def next_tick():
    """Return when the outbox ticks next, if that is a while away."""
    schedule = Schedule.objects.filter(name=JOB).first()
    assert schedule, "it is not made yet"
    return schedule.next_run if schedule.next_run - db_now() > WHILE else None


def test_commit_is_posted_by_a_run_before_the_next_tick(rung, cluster):
    running_cluster = cluster(JOB_OUTBOX_PERIOD_SEC=str(DAY_S))
    tick = eventually(next_tick, deadline_s=2 * WHILE.total_seconds())
    entry = posted(publish_one())
    # What a run did is recorded after the commit that posted.
    run = eventually(JobRun.objects.filter(job_id=JOB, counts__posted=1).first)
    assert entry.created_at <= run.started_at < tick
    running_cluster.stop()


def test_many_commits_are_all_posted_though_their_wake_ups_collapse(redis_up, cluster):
    running_cluster = cluster()
    entries = [publish_one() for _ in range(30)]
    for entry in entries:
        posted(entry)
    assert Transaction.objects.count() == 30
    running_cluster.stop()


def test_terminated_cluster_leaves_nothing_behind(redis_up, cluster):
    running_cluster = cluster()
    told = running_cluster.stop().json()
    assert (told["stopped_by"], told["restarts"]) == ("SIGTERM", 0)
    assert not JobRun.objects.filter(status="running").exists()
    assert not Job.objects.exclude(lease_owner="").exists()


def test_killed_parent_takes_sentinel_and_workers_along(redis_up, cluster):
    running_cluster = cluster()
    running_cluster.kill(running_cluster.parent)
    eventually(lambda: not running_cluster.started.family())


def test_killed_sentinel_is_replaced_and_its_orphans_are_killed(rung, cluster):
    running_cluster = cluster()
    old = running_cluster.started.family() - {running_cluster.parent}
    running_cluster.kill(running_cluster.sentinel)
    eventually(lambda: not old & running_cluster.started.family())
    eventually(running_cluster.is_complete)
    assert works(running_cluster).json()["restarts"] == 1


def test_killed_idle_workers_do_not_stop_the_cluster(redis_up, cluster):
    running_cluster = cluster()
    killed = running_cluster.workers()[:2]
    for worker in killed:
        with suppress(ProcessLookupError):  # the sentinel gives up at the first
            os.kill(worker, signal.SIGKILL)
    eventually(lambda: not {*killed} & running_cluster.started.family())
    eventually(running_cluster.is_complete)
    works(running_cluster)


def test_killed_pusher_does_not_stop_the_cluster(redis_up, cluster):
    running_cluster = cluster()
    running_cluster.kill(running_cluster.pusher)
    eventually(running_cluster.is_complete)
    works(running_cluster)


def test_killed_busy_worker_loses_nothing_and_posts_nothing_twice(rung, cluster):
    entry = publish_one()  # the first run has it: an idle one would stop there too
    running_cluster = cluster(RECOVERY_FAULTPOINTS="outbox.before_commit=stop@1", **QUICK)
    run = eventually(held)
    assert run.pid in running_cluster.workers()
    running_cluster.kill(run.pid)
    eventually(partial(goes_on, running_cluster, entry))
    run.refresh_from_db()
    assert run.status == "died"
    assert Transaction.objects.filter(event_key=entry.event_key).count() == 1
    assert not OutboxEntry.objects.exclude(attempts=0).exists()
    eventually(partial(goes_on, running_cluster, publish_one()))
    running_cluster.stop(resuming=True)


def goes_on(cluster, entry):
    """Resume who stopped at the fault point in its turn; tell whether the entry is posted."""
    cluster.resume()
    return is_posted(entry)


def test_cluster_started_twice_on_one_host_works_side_by_side(redis_up, cluster):
    first, second = cluster(), cluster()
    entries = [publish_one() for _ in range(5)]
    for entry in entries:
        posted(entry)
    first.stop()
    works(second)
    assert Transaction.objects.count() == 6
