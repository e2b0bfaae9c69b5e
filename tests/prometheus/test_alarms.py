"""Each alarm, fired by its real cause: a real Prometheus watches real processes being broken."""

from contextlib import ExitStack
from datetime import timedelta

import pytest
from django.db.models import F

from ledger import accounts
from recovery.clock import db_now
from recovery.models import AuditRecord, AuditSeal, Job
from splits.models import OrderStatus, SplitOrder, StepName
from tests.factories import SplitOrderFactory
from tests.faults.installation import installed
from tests.ledger.entries import drain, into, put
from tests.prometheus.watched import HASTE
from tests.prometheus.watching import prometheus
from tests.waiting import eventually
from tests.web import Web

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.mariadb,
    pytest.mark.timeout(900),
]


def test_killed_workers_are_missed_and_their_return_is_noticed(watched):
    it = watched()
    it.work()
    seen = it.prometheus
    for name in ("JobSilent", "ScrapeFailing"):
        seen.is_resolved(name)
    assert eventually(lambda: seen.query("sum(rate(job_runs_total[10s])) > 0"))
    it.kill()
    alarm = seen.fires("JobSilent", job="metricsCollect", severity="critical")
    waited = 'ALERTS{alertname="JobSilent",alertstate="pending",job="metricsCollect"}'
    assert seen.query(f"count_over_time({waited}[10m])")
    assert "metricsCollect has been silent for" in alarm["annotations"]["summary"]
    seen.fires("JobSilent", job="processLedgerOutbox")
    seen.fires("ScrapeFailing", job="recovery-worker", severity="warning")
    seen.fires("MetricsStale")
    it.work()
    for name in ("JobSilent", "ScrapeFailing", "MetricsStale"):
        seen.is_resolved(name)

    # The archive is a day's job: its last run is made one of the day before yesterday.
    Job.objects.filter(name="auditArchive").update(
        heartbeat_at=F("heartbeat_at") - timedelta(hours=27),
        created_at=F("created_at") - timedelta(hours=27),
    )
    seen.fires("AuditArchiveLate", job="auditArchive")
    assert it.run("run_job", "auditArchive").returncode == 0
    seen.is_resolved("AuditArchiveLate")


def test_runs_that_fail_raise_the_alarm_until_they_succeed(watched):
    it = watched()
    seen = it.prometheus
    broken = {"RECOVERY_FAULTPOINTS": "lease.acquired=raise"}
    it.work(**broken)
    alarm = seen.fires("JobFailing", job="recoverFinalizeStuck", severity="critical")
    assert "runs of recoverFinalizeStuck have failed" in alarm["annotations"]["description"]
    assert it.run("run_job", "auditArchive", **broken).returncode == 1
    seen.fires("JobFailing", job="auditArchive", severity="warning")
    it.kill()
    it.work()
    seen.is_resolved("JobFailing", severity="critical")


def test_entries_that_wait_or_die_raise_their_alarms(watched):
    put("opening", into("OAK", "1"))
    drain()
    it = watched()
    it.work()
    seen = it.prometheus
    it.run("jobs", "pause", "processLedgerOutbox", "--reason", "a test of the alarm")
    put("waiting", into("ASH", "1"))
    seen.fires("OutboxStalled")
    seen.fires("JobPausedForLong", job="processLedgerOutbox")
    accounts.close("stock:OAK", "m2", actor="cli:tester", reason="a test of the alarm")
    put("first", into("OAK", "1"), aggregate="lot:1")
    put("second", into("ASH", "1"), aggregate="lot:1")
    for number in range(101):
        put(f"dead{number}", into("OAK", "1"))
    it.run("jobs", "resume", "processLedgerOutbox", "--reason", "a test of the alarm")
    for name in ("OutboxStalled", "JobPausedForLong"):
        seen.is_resolved(name)
    alarm = seen.fires("DeadLettersGrowing", severity="critical")
    assert alarm["annotations"]["summary"].startswith("102 more dead letters")
    seen.fires("DeadLettersGrowing", severity="warning")
    seen.fires("DeadLettersWaiting")
    seen.fires("OutboxOldestAge")
    accounts.reopen("stock:OAK", "m2", actor="cli:tester", reason="a test of the alarm")
    done = it.run("dlq", "redrive", "--all", "--reason", "the account is open", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("DeadLettersGrowing", "DeadLettersWaiting", "OutboxOldestAge"):
        seen.is_resolved(name)


def test_orders_that_hang_or_give_up_raise_their_alarms(watched):
    it = watched(JOB_STUCK_ALERT_THRESHOLD="1", JOB_FINALIZE_RETRY_LIMIT="5")
    put("received", into("OAK", "100"))
    it.work()
    seen = it.prometheus
    it.run("jobs", "pause", "finalizeRetryWorker", "--reason", "a test of the alarm")

    # A finalizer that hangs in its transaction cannot be reset; it is killed.
    order = SplitOrderFactory()
    hung = hang_in_its_transaction(it, order)
    alarm = seen.fires("OrdersStuck")
    assert alarm["annotations"]["summary"].startswith("1 orders are stuck")
    hung.kill_all()
    seen.is_resolved("OrdersStuck")

    # Three of them die between two steps.
    die_between_steps(it, *(SplitOrderFactory() for _ in range(3)))
    seen.fires("FinalizeStuckRepeatedly")
    seen.fires("OrdersOverdue")

    # One dies whoever takes it.
    doomed = SplitOrderFactory()
    for _ in range(2):
        die_between_steps(it, doomed)
    seen.fires("OrdersQuarantined")
    released = it.run("recover_stuck", doomed.number, "--force", "--reason", "the host is mended")
    assert released.returncode == 0, released.stdout + released.stderr
    it.run("jobs", "resume", "finalizeRetryWorker", "--reason", "a test of the alarm")
    for name in ("OrdersQuarantined", "OrdersOverdue"):
        seen.is_resolved(name)
    assert not SplitOrder.objects.exclude(status=OrderStatus.FINALIZED).exists()

    # One fails at its last attempt.
    it.run("jobs", "pause", "finalizeRetryWorker", "--reason", "a test of the alarm")
    hopeless = SplitOrderFactory()
    fault = f"finalize.before_step.{StepName.CREATE_OUTPUTS}=raise"
    it.run("finalize", hopeless.number, RECOVERY_FAULTPOINTS=fault, JOB_FINALIZE_RETRY_LIMIT="1")
    seen.fires("FinalizeRetryLimitReached")
    done = it.run("plans", "create", "split.retry", hopeless.number, "--reason", "mended", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    seen.is_resolved("FinalizeRetryLimitReached")


def hang_in_its_transaction(it, order):
    fault = f"finalize.in_step.{StepName.CREATE_OUTPUTS}=stop"
    held = {"RECOVERY_FAULTPOINTS": fault, "DATABASE_IDLE_TRANSACTION_SEC": "600"}
    started = it.manage.start("finalize", order.number, env=it.env | held)
    eventually(started.is_stopped)
    return started


def die_between_steps(it, *orders):
    """Let a finalizer of each order die, all at once, and wait until they have been reset."""
    fault = f"finalize.before_step.{StepName.CREATE_OUTPUTS}=crash"
    left = [order.number for order in orders]

    def died():
        tries = [(it.start("finalize", who, RECOVERY_FAULTPOINTS=fault), who) for who in left]
        left[:] = [who for started, who in tries if started.finish().returncode >= 0]
        return not left

    eventually(died)
    of_them = SplitOrder.objects.filter(pk__in=[order.pk for order in orders])
    eventually(lambda: not of_them.filter(finalize_in_progress=True).exists())


def test_records_that_are_not_kept_and_seals_that_are_gone_raise_their_alarms(watched, tmp_path):
    it = watched(AUDIT_ARCHIVE=str(tmp_path / "warm"), AUDIT_COLD=str(tmp_path / "cold"))
    it.work()
    seen = it.prometheus
    reason = ("--reason", "a test of the alarm")

    # A record that nobody seals.
    it.run("jobs", "pause", "auditSeal", *reason)
    record_of(days_ago=0)
    seen.fires("AuditUnsealed", severity="warning")
    it.run("jobs", "resume", "auditSeal", *reason)
    seen.is_resolved("AuditUnsealed")

    # Records that stay where they are though they are past their days.
    it.run("jobs", "pause", "auditArchive", *reason)
    record_of(days_ago=100)
    alarm = seen.fires("AuditArchiveOverdue", severity="warning")
    assert "past their days for" in alarm["annotations"]["summary"]
    it.run("jobs", "resume", "auditArchive", *reason)
    assert it.run("run_job", "auditArchive").returncode == 0
    seen.is_resolved("AuditArchiveOverdue")

    # Seals that are not there any more, as after a restore.
    seen.is_resolved("AuditSealsWentBack")
    it.run("jobs", "pause", "auditSeal", *reason)
    eventually(lambda: is_scraped(seen))
    last = AuditSeal.objects.newest()
    assert last.number > 1
    last.spans.all().delete()
    last.delete()
    seen.fires("AuditSealsWentBack", severity="critical")
    it.run("jobs", "resume", "auditSeal", *reason)
    seen.is_resolved("AuditSealsWentBack")


def record_of(*, days_ago):
    """Store an audit record of so many days ago."""
    at = db_now() - timedelta(days=days_ago)
    AuditRecord(at=at, actor="a", action="b", target_type="t", target_id="x").save()


def is_scraped(server):
    """Tell whether Prometheus has the number and the fingerprint of the newest seal."""
    newest = AuditSeal.objects.newest()
    wanted = {float(newest.number), float(int(newest.hash[:12], 16))}
    states = '{__name__=~"audit_seal_(number|fingerprint)"}'
    return {value for _labels, value in server.query(states)} == wanted


@pytest.mark.redis
def test_redis_away_raises_its_alarm(watched, redis_server):
    it = watched(REDIS_URL=redis_server.url)
    it.work()
    seen = it.prometheus
    seen.is_resolved("JobLockDegraded")
    redis_server.stop()
    seen.fires("JobLockDegraded")
    redis_server.start()
    seen.is_resolved("JobLockDegraded")


def test_database_away_and_nobody_there_raise_their_alarms(tmp_path):
    with installed(**HASTE) as there, ExitStack() as stack:
        web = Web(there.manage, **there.environment)
        seen = stack.enter_context(prometheus(web=web.port))
        alarm = seen.fires("JobMissing", job="processLedgerOutbox")
        assert alarm["annotations"]["summary"] == "processLedgerOutbox was never set up"
        cluster = there.manage.start("qcluster", env=there.environment)
        seen.is_resolved("JobMissing")
        there.database.stop()
        seen.fires("DatabaseUnreachable")
        there.database.start()
        seen.is_resolved("DatabaseUnreachable")
        cluster.kill_all()
        web.started.kill_all()
        seen.fires("ScrapeFailing", severity="critical")
        web.start()
        seen.is_resolved("ScrapeFailing")
