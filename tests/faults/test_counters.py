"""Counters of workers that are killed, and ages of what nobody samples any more."""

import os
import signal
from collections import Counter
from contextlib import suppress
from functools import partial

import pytest
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from ledger.models import OutboxEntry, Transaction
from ledger.outbox import JOB as OUTBOX
from recovery import pauses, registry, tallies
from recovery.models import AuditRecord, JobRun
from recovery.wakeups import enqueue
from splits import audit
from splits.lifecycle import FINALIZE_JOB
from splits.models import Lot, SplitOrder, StuckSighting
from tests.faults.ledger import posted, publish_one
from tests.faults.workload import RESCUING, Workload
from tests.ledger.entries import store
from tests.processes import is_stopped
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

KILLS = 10
ORDERS = 24
BROKEN = 3
"""Every third of so many orders has lost its board, and every third receipt cannot be read."""
ATTEMPTS = 3
LOADED = RESCUING | {
    "JOB_BACKOFF_BASE_SEC": "0.2",
    "JOB_FINALIZE_RETRY_LIMIT": str(ATTEMPTS),
    "JOB_OUTBOX_MAX_ATTEMPTS": str(ATTEMPTS),
    "RECOVERY_FAULTPOINTS": "lease.acquired=sleep:0.1,finalize.before_step.post_ledger=sleep:0.3,"
    "outbox.after_commit=sleep:0.1",
}
"""Killed where it is dangerous: with a lock, in the middle of an order, behind a commit."""


def counted(place):
    """Return the counters of a directory by name and label."""
    return Counter({
        (sample.name.removesuffix("_total"), *sample.labels.values()): int(sample.value)
        for metric in tallies.read(place) for sample in metric.samples
        if sample.name.endswith("_total") and not sample.name.startswith("django_")
    })  # fmt: skip


def recorded():
    """Return what the same counters are by the tables and the audit."""
    runs = Counter(JobRun.objects.exclude(status="running").values_list("job_id", flat=True))
    bad = Counter(
        JobRun.objects.filter(status__in=("failed", "died")).values_list("job_id", flat=True)
    )
    attempts = SplitOrder.objects.values_list("finalize_attempts", flat=True)
    entries = OutboxEntry.objects.exclude(last_error_code="").values_list(
        "last_error_code", "attempts"
    )
    resets = AuditRecord.objects.filter(action__in=(audit.RECOVERED, audit.QUARANTINED))
    return Counter({
        **{("job_runs", name): count for name, count in runs.items()},
        **{("job_failures", name): count for name, count in bad.items()},
        ("finalize_retry_attempts",): sum(max(0, made - 1) for made in attempts),
        ("finalize_recoveries",): resets.values("target_id", "run_id").distinct().count(),
        ("job_stuck_detected",): StuckSighting.objects.count(),
        ("outbox_posted",): Transaction.objects.count(),
        **{("outbox_failures", code): sum(n for other, n in entries if other == code)
           for code in {code for code, _ in entries}},
    })  # fmt: skip


def load():
    """Import orders of which some cannot be finalized, and entries that cannot be posted."""
    work = Workload(ORDERS)
    orders = SplitOrder.objects.order_by("id")[::BROKEN]
    Lot.objects.filter(pk__in=[order.source_lot_id for order in orders]).update(status="cancelled")
    store([(f"bad-{number}", f"lot:bad-{number}", {}) for number in range(ORDERS // BROKEN)])
    return work


def busy(cluster):
    """Return the workers that are in the middle of a run: of orders or entries, if there are."""
    runs = JobRun.objects.filter(status="running", pid__in=cluster.forked())
    loaded = runs.filter(job_id__in=(FINALIZE_JOB, OUTBOX))
    pids = {run.pid for run in loaded} or {run.pid for run in runs}
    if not pids:
        enqueue("metricsCollect")
    return pids


def finalizing(cluster):
    """Return the workers that are in the middle of an order."""
    owners = SplitOrder.objects.in_progress().values_list("finalize_owner", flat=True)
    return {int(owner.split(":")[1]) for owner in owners} & {*cluster.forked()}


def caught(wanted, cluster):
    """Return a worker that was stopped in the middle of what is ``wanted``, and still is in it."""
    for pid in wanted(cluster):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            eventually(lambda pid=pid: is_stopped(pid) or pid not in cluster.started.family())
            if pid in wanted(cluster):
                return pid
            os.kill(pid, signal.SIGCONT)
    return None


def is_settled():
    """Tell whether all is finalized, posted, or given up."""
    orders = SplitOrder.objects.exclude(status__in=("finalized", "failed", "quarantined"))
    return not (orders.exists() or OutboxEntry.objects.filter(status="pending").exists())


def bury():
    """Let each job look for those of its runs that died, and wait until none is left."""
    for job in registry.all_jobs():
        enqueue(job.name)
    begun = JobRun.objects.filter(status="running").values_list("pk", flat=True)
    before = list(begun)
    eventually(lambda: not JobRun.objects.filter(status="running", pk__in=before).exists())


@pytest.mark.timeout(300)
def test_counters_are_what_the_tables_say_after_ten_killed_workers_under_load(
    redis_up, cluster, tmp_path
):
    load()
    running = cluster(PROMETHEUS_MULTIPROC_DIR=str(tmp_path), **LOADED)
    for number in range(KILLS):
        wanted = finalizing if number < BROKEN else busy
        running.kill(eventually(partial(caught, wanted, running)))
        posted(publish_one())
        eventually(running.is_complete)
    eventually(is_settled, deadline_s=120)
    bury()
    running.stop()
    found, told = counted(tmp_path), recorded()
    died = JobRun.objects.filter(status="died").count()
    assert died > 0
    for name in ("finalize_retry_attempts", "finalize_recoveries", "job_stuck_detected"):
        assert told[name,] > 0, name
    assert told["outbox_failures", "payload_invalid"] > 0
    # One that is killed between a commit and its count has not counted it; none counts too much.
    surplus = {key: found[key] - told[key] for key in told if found[key] > told[key]}
    assert surplus == {}
    assert sum((told - found).values()) <= died
    assert len(list(tmp_path.glob("*.db"))) <= 2, "files of the dead are merged"


def scraped(name):
    answer = Client().get("/metrics")
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
        if sample.name == name
    }


def value(name, *labels):
    """Return a sample; 0 where a scrape lacks it, for the database was too slow."""
    return scraped(name).get(labels, 0)


def test_ages_grow_while_the_collector_is_paused(redis_up, cluster):
    running = cluster()
    eventually(lambda: pauses.pause("processLedgerOutbox", actor="test"))
    publish_one()
    waits = eventually(partial(value, "outbox_oldest_pending_age_seconds"))
    pauses.pause("metricsCollect", actor="test")
    eventually(lambda: not JobRun.objects.filter(status="running").exists())
    age = eventually(partial(value, "metrics_sample_age_seconds"))
    beat = eventually(partial(value, "job_heartbeat_age_seconds", "metricsCollect"))
    eventually(lambda: value("metrics_sample_age_seconds") > age + 2)
    # Each was first read a moment later than the one before.
    eventually(lambda: value("outbox_oldest_pending_age_seconds") > waits + 2)
    eventually(lambda: value("job_heartbeat_age_seconds", "metricsCollect") > beat + 2)
    running.stop()
