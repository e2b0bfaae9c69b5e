"""Counters of workers that are killed, and ages of what nobody samples any more."""

from collections import Counter

import pytest
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from recovery import pauses, tallies
from recovery.models import JobRun
from recovery.wakeups import enqueue
from tests.faults.ledger import QUICK, posted, publish_one
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

JOBS = ("metricsCollect", "recoverFinalizeStuck")
KILLS = 10


def counted(place):
    return {
        sample.labels["job"]: sample.value
        for metric in tallies.read(place)
        for sample in metric.samples
        if sample.name == "job_runs_total"
    }


def recorded():
    """Return the runs that ended, by job; those that died are not counted."""
    ended = JobRun.objects.exclude(status__in=("running", "died"))
    return Counter(ended.values_list("job_id", flat=True))


def busy(cluster):
    """Return a worker that is in the middle of a run."""
    for name in JOBS:
        enqueue(name)
    runs = JobRun.objects.filter(status="running", pid__in=cluster.workers())
    run = runs.order_by("-id").first()
    return run and run.pid


def test_counters_survive_ten_killed_workers(redis_up, cluster, tmp_path):
    running = cluster(
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path), RECOVERY_FAULTPOINTS="lease.acquired=sleep:0.2",
        **QUICK,
    )  # fmt: skip
    for _ in range(KILLS):
        running.kill(eventually(lambda: busy(running)))
        posted(publish_one())
        eventually(running.is_complete)
    running.stop()
    found, ended = counted(tmp_path), recorded()
    assert JobRun.objects.filter(status="died").exists()
    assert sum(ended.values()) > KILLS
    assert sum(abs(found[name] - ended[name]) for name in found) <= KILLS
    assert len(list(tmp_path.glob("*.db"))) <= 2, "files of the dead are merged"


def scraped(name):
    answer = Client().get("/metrics")
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
        if sample.name == name
    }


def test_ages_grow_while_the_collector_is_paused(redis_up, cluster):
    running = cluster()
    eventually(lambda: pauses.pause("processLedgerOutbox", actor="test"))
    publish_one()
    waits = eventually(lambda: scraped("outbox_oldest_pending_age_seconds").get(()))
    pauses.pause("metricsCollect", actor="test")
    eventually(lambda: not JobRun.objects.filter(status="running").exists())
    (age,) = scraped("metrics_sample_age_seconds").values()
    beat = scraped("job_heartbeat_age_seconds")["metricsCollect",]
    eventually(lambda: scraped("metrics_sample_age_seconds")[()] > age + 2)
    # Each was first read a moment later than the one before.
    eventually(lambda: scraped("outbox_oldest_pending_age_seconds")[()] > waits + 2)
    eventually(lambda: scraped("job_heartbeat_age_seconds")["metricsCollect",] > beat + 2)
    running.stop()
