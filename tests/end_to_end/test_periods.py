"""Two clusters on one database keep the default periods, each tick once.

``SOAK=1`` watches for five minutes on whichever stack; else one on production's alone.
"""

import os
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings
from django.db import connection

from recovery import registry
from recovery.clock import db_now
from recovery.models import JobRun
from tests.waiting import eventually

SOAK = os.environ.get("SOAK") == "1"
WATCH_S = 300 if SOAK else 61
TOLERANCE_S = 4.0
"""A slow machine's; a run that is later than the shortest period is taken for the next tick's."""
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
QUIET = {"LOG_LEVEL": "WARNING", "REDIS_TIMEOUT_SEC": "10"}

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(WATCH_S + 180),
]


@pytest.fixture
def clusters(manage):
    """Return what starts two clusters and waits until both guard."""

    def start():
        started = [manage.start("qcluster", "--json", env=QUIET) for _ in range(2)]
        for cluster in started:
            eventually(lambda cluster=cluster: len(cluster.family()) >= members())
        return started

    return start


def members():
    """Return how many processes a cluster has: parent, sentinel, workers, monitor, pusher."""
    return settings.Q_CLUSTER["workers"] + 4


def stop(clusters):
    for cluster in clusters:
        cluster.signal(signal.SIGTERM)
    for cluster in clusters:
        finished = cluster.finish()
        assert finished.returncode == 0, finished.stderr
        assert not cluster.family()
        assert finished.json()["restarts"] == 0
        assert finished.stderr == "", "nothing to warn of"


def wait_until(moment):
    eventually(lambda: db_now() >= moment, deadline_s=WATCH_S + 60)


def slot_at_or_before(moment, period_s):
    return moment - (moment - EPOCH) % timedelta(seconds=period_s)


def slots(period_s, start, end):
    """Return the regular ticks after ``start`` up to ``end``."""
    first = slot_at_or_before(start, period_s) + timedelta(seconds=period_s)
    count = max(0, (end - first) // timedelta(seconds=period_s) + 1)
    return [first + timedelta(seconds=period_s * number) for number in range(count)]


def ticks(job, begin, end):
    return slots(job.period_s, begin, end)


def starts_within(job, begin, end):
    """Return when the runs of the ticks between began: that of the last one may be after all."""
    expected = ticks(job, begin, end)
    if not expected:
        return []
    over = expected[-1] + timedelta(seconds=job.period_s)
    return [at for at in starts_of(job, expected[0]) if at < over]


def starts_of(job, since):
    runs = JobRun.objects.filter(job_id=job.name, started_at__gte=since).order_by("started_at")
    return list(runs.values_list("started_at", flat=True))


@pytest.mark.skipif(
    not SOAK and (connection.vendor == "sqlite" or not settings.REDIS_URL),
    reason="one stack is enough: production's (SOAK=1 watches here too)",
)
def test_two_clusters_keep_the_default_periods_and_start_each_tick_once(clusters, capsys):
    started = clusters()
    begin = db_now()
    end = begin + timedelta(seconds=WATCH_S)
    wait_until(end)
    for job in registry.all_jobs():
        eventually(
            lambda job=job: len(starts_within(job, begin, end)) >= len(ticks(job, begin, end))
        )
    stop(started)
    report = []
    for job in registry.all_jobs():
        expected, runs = ticks(job, begin, end), starts_within(job, begin, end)
        late_s = [(at - slot_at_or_before(at, job.period_s)).total_seconds() for at in runs]
        per_slot = Counter(slot_at_or_before(at, job.period_s) for at in runs)
        assert per_slot == Counter(expected), f"{job.name}: a tick was missed or doubled"
        assert all(late < TOLERANCE_S for late in late_s), f"{job.name}: late by {late_s}"
        if runs:
            mean_s = sum(late_s) / len(runs)
            report.append(
                f"{job.name} every {job.period_s} s: {len(runs)} runs,"
                f" mean {mean_s:.3f} s, worst {max(late_s):.3f} s after the slot"
            )
    assert JobRun.objects.exclude(status="ok").count() == 0
    with capsys.disabled():
        print("", *report, sep="\n  ")  # noqa: T201 - the figures of a soak


def test_missed_ticks_are_one_run_after_a_standstill(clusters):
    brisk = registry.get("runRecoveryPlans")
    first = clusters()
    eventually(lambda: JobRun.objects.filter(job_id=brisk.name, status="ok").exists())
    stop(first)
    stopped = db_now()
    wait_until(stopped + timedelta(seconds=2 * brisk.period_s + 1))
    restarted = db_now()
    missed = [job for job in registry.all_jobs() if slots(job.period_s, stopped, restarted)]
    second = clusters()
    eventually(lambda: len(starts_of(brisk, stopped)) >= 2)
    eventually(lambda: all(starts_of(job, stopped) for job in missed))
    stop(second)
    for job in missed:
        runs = starts_of(job, stopped)
        # One for all that was missed, which may start just behind the next slot, and the regular.
        regular = slots(job.period_s, restarted, runs[-1])
        assert len(runs) <= 1 + len(regular), f"{job.name} was run again for a missed tick"
