"""Real clusters: woken, stopped, and killed piece by piece."""

import os
from datetime import timedelta

import pytest

from ledger.models import OutboxEntry, Transaction
from ledger.outbox import JOB
from recovery.clock import db_now
from recovery.models import Job, JobRun
from tests.end_to_end.test_periods import slot_at_or_before
from tests.faults.ledger import QUICK, posted, publish_one, running
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)


def works(cluster):
    """Assert that what is published is posted, and that the cluster then stops in order."""
    posted(publish_one())
    return cluster.stop()


def early_in_a_slot():
    """Tell whether the outbox's next tick is a while away."""
    now = db_now()
    into = now - slot_at_or_before(now, 10)
    return timedelta(seconds=1) < into < timedelta(seconds=4)


def test_commit_is_posted_by_a_run_before_the_next_tick(rung, cluster):
    running_cluster = cluster()
    eventually(early_in_a_slot)
    next_tick = slot_at_or_before(db_now(), 10) + timedelta(seconds=10)
    entry = posted(publish_one())
    # What a run did is recorded after the commit that posted.
    run = eventually(JobRun.objects.filter(job_id=JOB, counts__posted=1).first)
    assert entry.created_at <= run.started_at < next_tick
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
    for worker in running_cluster.workers()[:2]:
        running_cluster.kill(worker)
    eventually(running_cluster.is_complete)
    works(running_cluster)


def test_killed_pusher_does_not_stop_the_cluster(redis_up, cluster):
    running_cluster = cluster()
    pusher = max(running_cluster.children(running_cluster.sentinel))
    running_cluster.kill(pusher)
    eventually(lambda: pusher not in running_cluster.started.family())
    eventually(running_cluster.is_complete)
    works(running_cluster)


def test_killed_busy_worker_loses_nothing_and_posts_nothing_twice(rung, cluster):
    running_cluster = cluster(RECOVERY_FAULTPOINTS="outbox.before_commit=sleep:2@1", **QUICK)
    entry = publish_one()
    run = eventually(running)
    assert run.pid in running_cluster.workers()
    os.kill(run.pid, 9)
    posted(entry)
    run.refresh_from_db()
    assert run.status == "died"
    assert Transaction.objects.filter(event_key=entry.event_key).count() == 1
    assert not OutboxEntry.objects.exclude(attempts=0).exists()
    works(running_cluster)


def test_cluster_started_twice_on_one_host_works_side_by_side(redis_up, cluster):
    first, second = cluster(), cluster()
    entries = [publish_one() for _ in range(5)]
    for entry in entries:
        posted(entry)
    first.stop()
    works(second)
    assert Transaction.objects.count() == 6
