"""``manage.py selfcheck``: five questions a job; each says no, and why, when it is broken."""

import json
import re
import sqlite3
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.conf import settings as current
from django.core.management import CommandError, call_command
from django.db import connection
from django_q.models import OrmQ, Schedule
from prometheus_client import REGISTRY

from recovery import (
    heartbeats,
    leases,
    link,
    metrics,
    pauses,
    probes,
    registry,
    runner,
    schedules,
    wakeups,
)
from recovery.carrying import Carrier
from recovery.clock import db_now
from recovery.models import AuditRecord, Job, JobQuerySet, JobRun
from recovery.registry import Limit
from recovery.rehearsing import UnprovenError, rehearsed
from recovery.selfcheck import findings, limits, locks
from recovery.selfcheck.answers import answers
from recovery.selfcheck.findings import Finding, Severity
from recovery.selfcheck.questions import QUESTIONS
from tests.ledger.entries import refusing
from tests.recovery.engine import NAME, client, in_thread, in_threads, register, row, row_held
from tests.recovery.test_probes import closed_port

pytestmark = pytest.mark.django_db(transaction=True)

OUTBOX, FINALIZE, STUCK = "processLedgerOutbox", "finalizeRetryWorker", "recoverFinalizeStuck"
PLANS = "runRecoveryPlans"
LIMITED = {
    OUTBOX: "JOB_OUTBOX_MAX_ATTEMPTS",
    FINALIZE: "JOB_FINALIZE_RETRY_LIMIT",
    STUCK: "JOB_STUCK_ALERT_THRESHOLD",
    PLANS: "JOB_PLAN_HALT_SHARE",
}
NO_LIMITS = [0, -1, None, float("inf"), float("nan"), "10", True]


@pytest.fixture(autouse=True)
def jobs():
    """Jobs that were just set up, however long a test takes on a slow machine."""
    schedules.mend()
    Job.objects.update(created_at=db_now() + timedelta(seconds=120))


@pytest.fixture
def job(monkeypatch):
    """A third party's job: one function, nothing declared."""
    register(monkeypatch)
    metrics.announce([NAME])
    return registry.get(NAME)


def ask(question, name=NAME):
    """Return the answer to one question of one job."""
    return answers(registry.get(name), {question: QUESTIONS[question]})[question]


def selfcheck(capsys, *names):
    """Return the document and the exit status."""
    status = 0
    try:
        call_command("selfcheck", *names, "--json")
    except SystemExit as left:
        status = left.code
    return json.loads(capsys.readouterr().out), status


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        call_command("selfcheck", *arguments)
    assert left.value.code == 1
    return capsys.readouterr().out


def rows_of_all_tables():
    """Return how many rows each table holds, but for the audit records of probes."""
    with connection.cursor() as cursor:
        counts = {}
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT COUNT(*) FROM {table}")
            (counts[table],) = cursor.fetchone()
    counts["recovery_auditrecord"] -= AuditRecord.objects.filter(action="selfcheck-probed").count()
    return counts


def counted():
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith(("job_", "outbox_", "finalize_"))
    }


def put_off():
    """Let no tick be late yet, however slow the machine is."""
    Schedule.objects.update(next_run=db_now() + timedelta(seconds=120))


def test_all_is_well_where_all_is_well(rung, capsys):
    put_off()
    document, status = selfcheck(capsys)
    assert sorted(document) == ["findings", "jobs", "ok"]
    assert list(document["jobs"]) == [it.name for it in registry.all_jobs()]
    for of_job in document["jobs"].values():
        assert list(of_job) == ["lock", "heartbeat", "limit", "metric", "audit"]
        for answer in of_job.values():
            assert sorted(answer) == ["evidence", "ok"], answer
            assert answer["ok"] is True, answer
    assert document["jobs"][OUTBOX]["heartbeat"]["evidence"].startswith("it never ran")
    errors = [it for it in document["findings"] if it["severity"] == "error"]
    assert [it["id"] for it in errors] == ["workers-silent"], "no worker has run yet"
    assert (status, document["ok"]) == (1, False)
    runner.run_job("metricsCollect")
    put_off()
    document, status = selfcheck(capsys)
    assert [it for it in document["findings"] if it["severity"] == "error"] == []
    assert (status, document["ok"]) == (0, True)


def test_nothing_is_left_behind_but_the_probes_records(rung, capsys):
    before_rows, before_jobs = rows_of_all_tables(), list(Job.objects.order_by("name").values())
    before_counts = counted()
    keys = set(client().keys()) if current.REDIS_URL else set()
    selfcheck(capsys)
    assert rows_of_all_tables() == before_rows
    assert list(Job.objects.order_by("name").values()) == before_jobs
    assert counted() == before_counts
    if current.REDIS_URL:
        assert set(client().keys()) - {b"recovery:probe"} == keys
    probes_written = AuditRecord.objects.filter(action="selfcheck-probed")
    assert sorted(probes_written.values_list("target_id", flat=True)) == [
        it.name for it in registry.all_jobs()
    ]
    assert all(it.actor.startswith("cli:") for it in probes_written)


def test_job_of_one_function_is_held_to_its_time_budget_and_the_record_of_its_runs(job):
    assert "JOB_TIME_BUDGET_SEC=20" in ask("limit").evidence
    assert "its record is that of its runs, none so far" in ask("audit").evidence
    runner.run_job(NAME)
    assert f"the last one {JobRun.objects.get(job_id=NAME).run_id} (ok)" in ask("audit").evidence
    assert all(ask(question).ok for question in QUESTIONS)


# Locked?


def test_second_holder_is_refused_by_each_rung_there_is(rung, job):
    answer = ask("lock")
    assert answer.ok
    assert ("the Redis key and the row" in answer.evidence) is (rung == "redis")
    assert "the row in recovery_job" in answer.evidence


def test_lock_that_lets_a_second_holder_in_is_a_no(rung, job, monkeypatch):
    def let_all_in(self, *, owner, ttl_s):
        return bool(self.update(lease_owner=owner, fence=99))

    monkeypatch.setattr(JobQuerySet, "acquire", let_all_in)
    before = Job.objects.values().get(name=NAME)
    answer = ask("lock")
    assert not answer.ok
    assert answer.evidence == "a second holder was let in while the first one held the lock"
    assert NAME in answer.remedy
    assert Job.objects.values().get(name=NAME) == before
    if rung == "redis":
        assert not client().exists(f"lock:job:{NAME}")


def test_lock_that_is_not_taken_at_all_is_a_no(rung, job, monkeypatch):
    @contextmanager
    def take(name):
        yield leases.Lease(name, "us:1:token", 1, db_now())

    monkeypatch.setattr(leases, "taking", take)
    answer = ask("lock")
    assert (answer.ok, "second holder was let in" in answer.evidence) == (False, True)
    assert not JobRun.objects.exists()


def test_run_that_begins_without_the_lock_is_a_no(rung, job, monkeypatch):
    def unlocked(job):
        return runner.Run(job, leases.Lease(job.name, "us:1:token", 1, db_now()))

    monkeypatch.setattr(runner, "begin", unlocked)
    assert not ask("lock").ok


def test_redis_key_that_refuses_nobody_is_a_warning_for_the_row_does(job, redis_up, monkeypatch):
    monkeypatch.setattr(leases, "_take_key", lambda *_: None)
    answer = ask("lock")
    assert answer.ok
    (finding,) = answer.findings
    assert (finding.id, finding.severity) == ("lock-key-open", Severity.WARNING)


def test_being_refused_by_who_holds_it_is_evidence(rung, job):
    lease = leases.acquire(NAME)
    before = Job.objects.values().get(name=NAME)
    answer = ask("lock")
    assert answer.ok
    assert f"held by {leases.HOST}:" in answer.evidence
    assert ("by the Redis key" in answer.evidence) is (rung == "redis")
    assert Job.objects.values().get(name=NAME) == before
    lease.renew()
    if rung == "redis":
        assert client().get(f"lock:job:{NAME}").decode() == lease.token


@pytest.mark.mariadb
def test_row_that_another_transaction_keeps_refuses_us_too(no_redis, job):
    with row_held():
        answer = ask("lock")
    assert (answer.ok, "held by another run" in answer.evidence) == (True, True)


def test_paused_job_is_asked_as_if_it_were_not(rung, job):
    pauses.pause(NAME, actor="cli:tester")
    before = Job.objects.values().get(name=NAME)
    answer = ask("lock")
    assert answer.ok
    assert answer.evidence.endswith(", as it will be once it is resumed")
    assert Job.objects.values().get(name=NAME) == before
    assert runner.run_job(NAME).reason == "paused"


def test_redis_that_is_down_is_degraded_and_no_no(job, settings, capsys):
    settings.REDIS_URL = f"redis://127.0.0.1:{closed_port()}/0"
    document, _status = selfcheck(capsys, NAME)
    lock = document["jobs"][NAME]["lock"]
    assert lock["ok"]
    assert lock["evidence"].endswith("; Redis is down, so the row alone was asked")
    assert "recovery.W010" in {it["id"] for it in document["findings"]}


def test_worker_that_comes_while_the_row_is_asked_is_told_from_it(redis_up, job, monkeypatch):
    monkeypatch.setattr(locks, "PAUSE_S", 0.0)
    asked = iter([leases.KEY, leases.KEY, leases.KEY, leases.ROW])

    def refused(_name):
        return next(asked)

    monkeypatch.setattr(locks, "_refusal", refused)
    assert "the Redis key and the row" in ask("lock").evidence


def test_run_whose_wake_up_came_meanwhile_is_started(rung, job, monkeypatch):
    sent = []
    monkeypatch.setattr(wakeups, "enqueue", sent.append)
    ask("lock")
    assert sent == []
    wakeups.wake(NAME)
    ask("lock")
    assert sent == [NAME]
    assert wakeups.pending(NAME), "only a run clears it"


def test_workers_at_work_and_selfcheck_are_in_each_others_way_harmlessly(rung, job):
    done = []

    def work():
        return [runner.run_job(NAME) for _ in range(30)]

    def look():
        done.extend(ask("lock") for _ in range(30))

    outcomes, _nothing = in_threads(work, look)
    assert [answer for answer in done if not answer.ok] == []
    assert len(done) == 30
    assert {(it.status, it.reason) for it in outcomes} <= {("ok", ""), ("skipped", "locked")}
    ran = sum(it.status == "ok" for it in outcomes)
    assert JobRun.objects.filter(job_id=NAME, status="ok").count() == JobRun.objects.count() == ran
    assert row().fence == ran
    assert row().lease_owner == ""


def test_job_can_be_taken_at_once_after_it_was_asked(rung, job):
    assert ask("lock").ok
    assert in_thread(lambda: runner.run_job(NAME)).status == "ok"
    assert row().fence == 1


# A heartbeat?


@pytest.mark.parametrize(("age_s", "ok"), [(1_500, True), (2_000, False)])
@pytest.mark.usefixtures("long_periods")
def test_heartbeat_that_is_silenced_for_three_periods_is_a_no(no_redis, job, age_s, ok):
    Job.objects.filter(name=NAME).update(heartbeat_at=db_now() - timedelta(seconds=age_s))
    answer = ask("heartbeat")
    assert answer.ok is ok
    if ok:
        assert re.search(r"its row beat 15\d\d\.\d s ago, at most 1800 s allowed", answer.evidence)
    else:
        assert re.search(r"last heartbeat 20\d\d s ago, more than 1800 s", answer.evidence)
        assert "qcluster" in answer.remedy


def test_heartbeat_that_no_run_writes_any_more_is_a_no(rung, job, settings, monkeypatch):
    settings.JOB_OUTBOX_PERIOD_SEC = 60
    runner.run_job(NAME)
    assert ask("heartbeat").ok
    old = db_now() - timedelta(minutes=10)
    Job.objects.filter(name=NAME).update(heartbeat_at=old)
    genuine = JobQuerySet.update
    monkeypatch.setattr(heartbeats, "beat", lambda *_, **__: None)
    monkeypatch.setattr(
        JobQuerySet,
        "update",
        lambda self, **it: genuine(self, **{k: it[k] for k in it if k != "heartbeat_at"}),
    )
    assert runner.run_job(NAME).status == "ok"
    assert "last heartbeat 6" in ask("heartbeat").evidence
    assert not ask("heartbeat").ok


def test_paused_job_need_not_beat(no_redis, job):
    Job.objects.filter(name=NAME).update(heartbeat_at=db_now() - timedelta(days=1))
    pauses.pause(NAME, actor="cli:tester")
    answer = ask("heartbeat")
    assert (answer.ok, answer.evidence.startswith("paused since ")) == (True, True)


def test_job_that_never_ran_is_judged_from_when_it_was_set_up(job):
    assert "it never ran and was set up" in ask("heartbeat").evidence
    Job.objects.filter(name=NAME).update(created_at=db_now() - timedelta(days=1))
    assert not ask("heartbeat").ok
    Job.objects.filter(name=NAME).delete()
    answer = ask("heartbeat")
    assert (answer.ok, "never set up" in answer.evidence) == (False, True)


def test_key_in_redis_is_read_beside_the_row(redis_up, job):
    runner.run_job(NAME)
    assert ask("heartbeat").evidence.endswith("and so did its key in Redis")


@pytest.mark.parametrize("left", [None, "junk", '{"at": "2020-01-01T00:00:00+00:00"}'])
def test_row_that_beats_while_its_key_does_not_is_a_no(redis_up, job, monkeypatch, left):
    monkeypatch.setattr(heartbeats, "beat", lambda *_, **__: None)
    runner.run_job(NAME)
    if left:
        client().set(f"job:heartbeat:{NAME}", left)
    answer = ask("heartbeat")
    assert not answer.ok
    assert f"job:heartbeat:{NAME} in Redis is missing or older than 30 s" in answer.evidence


def test_flushed_key_of_a_daily_job_is_a_warning(redis_up):
    runner.run_job("auditArchive")
    client().flushall()
    answer = ask("heartbeat", "auditArchive")
    assert answer.ok
    assert [it.id for it in answer.findings] == ["heartbeat-key-missing"]


def test_heartbeat_without_redis_is_the_rows(redis_up, job, settings):
    runner.run_job(NAME)
    settings.REDIS_URL = f"redis://127.0.0.1:{closed_port()}/0"
    answer = ask("heartbeat")
    assert answer.ok
    assert answer.evidence.endswith("Redis is down, so the row alone was read")


# Limited?


@pytest.mark.parametrize("name", LIMITED)
def test_limit_is_walked_to(name):
    answer = ask("limit", name)
    assert answer.ok
    value = getattr(current, LIMITED[name])
    assert answer.evidence.startswith(f"{LIMITED[name]}={value}: ")
    ends = {OUTBOX: "attempt 10 was dead", FINALIZE: "attempt 5 was failed",
            STUCK: "hung 4 times was quarantined",
            PLANS: "a plan of 3 rows, 1 of them refused, was halted"}  # fmt: skip
    assert ends[name] in answer.evidence
    assert "JOB_TIME_BUDGET_SEC=20: " in answer.evidence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in LIMITED
        for value in NO_LIMITS
        # 0 is their lowest value by design: the first time is one too many.
        if not (name in (STUCK, PLANS) and value == 0)
    ],
)
def test_limit_that_is_none_is_a_no(name, value, settings):
    setattr(settings, LIMITED[name], value)
    answer = ask("limit", name)
    assert not answer.ok
    assert answer.evidence == f"{LIMITED[name]}={value!r} limits nothing"
    assert answer.remedy.startswith(f"Set {LIMITED[name]} to a number of at least ")


def test_alert_threshold_of_0_quarantines_the_first_time(settings):
    settings.JOB_STUCK_ALERT_THRESHOLD = 0
    answer = ask("limit", STUCK)
    assert (answer.ok, "hung 1 times was quarantined" in answer.evidence) == (True, True)
    assert ask("audit", STUCK).ok


def test_share_of_failures_that_never_halts_a_plan_is_a_no(settings):
    settings.JOB_PLAN_HALT_SHARE = 1
    answer = ask("limit", PLANS)
    assert (answer.ok, answer.remedy) == (False, "Set JOB_PLAN_HALT_SHARE below 1.")
    assert "3 of them refused, was done" in answer.evidence


def test_carrier_that_does_not_halt_is_a_no(monkeypatch):
    monkeypatch.setattr(Carrier, "_halt", lambda _carrier: None)
    assert not ask("limit", PLANS).ok


@pytest.mark.parametrize("name", LIMITED)
def test_limit_that_is_absent_is_a_no(name, settings):
    delattr(settings, LIMITED[name])
    answer = ask("limit", name)
    assert (answer.ok, "=None limits nothing" in answer.evidence) == (False, True)


def test_no_limit_leaves_the_other_answers_alone(settings, capsys):
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 0
    document, status = selfcheck(capsys, OUTBOX)
    no = [name for name, it in document["jobs"][OUTBOX].items() if not it["ok"]]
    assert (no, status, document["ok"]) == (["limit"], 1, False)


@pytest.mark.parametrize("value", NO_LIMITS)
def test_time_budget_that_is_none_is_a_no(job, settings, value):
    settings.JOB_TIME_BUDGET_SEC = value
    answer = ask("limit")
    assert answer.evidence == f"JOB_TIME_BUDGET_SEC={value!r} limits nothing"
    assert answer.remedy == "Set JOB_TIME_BUDGET_SEC to a number of at least 0.1."


def test_run_that_goes_on_beyond_its_time_is_a_no(job, monkeypatch):
    monkeypatch.setattr(runner.Run, "over", lambda _self: False)
    answer = ask("limit")
    assert not answer.ok
    assert "JOB_TIME_BUDGET_SEC=20, but a run worked 3 batches after its time" in answer.evidence
    assert "does not stop at JOB_TIME_BUDGET_SEC" in answer.remedy


def test_hung_batch_that_nothing_ends_is_a_no(job, settings):
    settings.Q_CLUSTER = {**settings.Q_CLUSTER, "timeout": None}
    answer = ask("limit")
    assert (answer.ok, "JOB_TASK_TIMEOUT_SEC=None" in answer.evidence) == (False, True)


def test_walk_that_raises_is_a_no_with_the_error(job, monkeypatch):
    def burst(_rehearsal):
        raise RuntimeError("no\nway")

    declare(monkeypatch, limit=Limit("JOB_OUTBOX_MAX_ATTEMPTS", burst))
    answer = ask("limit")
    assert (answer.ok, answer.evidence) == (False, "it could not be asked: RuntimeError: no way")


def test_no_code_is_walked_while_faults_are_planned(job, settings):
    settings.RECOVERY_FAULTPOINTS = "finalize.after_step.validate=crash"
    try:
        answer = ask("limit")
    finally:
        settings.RECOVERY_FAULTPOINTS = ""
    assert not answer.ok
    assert "RECOVERY_FAULTPOINTS=" in answer.evidence
    assert answer.remedy == "Unset RECOVERY_FAULTPOINTS."


def declare(monkeypatch, **declared):
    known = vars(registry.get(NAME)) | declared
    monkeypatch.setitem(registry._jobs, NAME, registry.Job(**known))


# Counted?


def test_metric_is_scraped(job):
    runner.run_job(NAME)
    answer = ask("metric")
    assert answer.ok
    assert f'job_runs_total{{job="{NAME}"}} ' in answer.evidence


def test_scrape_carries_the_token(job, settings):
    settings.METRICS_TOKEN = "s3cret"
    assert ask("metric").ok


def test_metrics_that_are_off_are_a_no(job, settings):
    settings.METRICS_ENABLED = False
    answer = ask("metric")
    assert (answer.ok, answer.evidence) == (False, "metrics are off: METRICS_ENABLED=false")
    assert answer.remedy == "Set METRICS_ENABLED=true."


@contextmanager
def unregistered(metric):
    REGISTRY.unregister(metric)
    try:
        yield
    finally:
        REGISTRY.register(metric)


@pytest.mark.parametrize("metric", [metrics.JOB_RUNS, metrics.JOB_FAILURES, metrics.JOB_DURATION])
def test_metric_that_is_not_registered_is_a_no(job, metric):
    with unregistered(metric):
        answer = ask("metric")
    assert not answer.ok
    assert f"{metric._name}" in answer.evidence
    assert f'{{job="{NAME}"}}' in answer.evidence


def test_metric_that_no_process_exports_is_a_no(monkeypatch):
    register(monkeypatch, name="neverAnnounced")
    answer = ask("metric", "neverAnnounced")
    assert not answer.ok
    assert 'a scrape of /metrics has no job_runs_total{job="neverAnnounced"}' in answer.evidence


def test_scrape_that_fails_is_a_no(job, monkeypatch):
    def busy(_place):
        raise probes.tallies.TalliesBusyError("held")

    monkeypatch.setattr(probes.tallies, "read", busy)
    answer = ask("metric")
    assert not answer.ok
    assert answer.evidence == "/metrics answers the counters cannot be read: held"


def test_scrape_that_nobody_answers_is_a_no(job, monkeypatch):
    monkeypatch.setattr(probes, "_views", {})
    assert ask("metric").evidence == "/metrics answers nothing"


# Audited?


@pytest.mark.parametrize(
    ("name", "actions"),
    [
        (OUTBOX, ["outbox-entry-dead"]),
        (FINALIZE, ["split-order-finalize-failed", "split-order-finalize-retry-limit"]),
        (STUCK, ["split-order-finalize-stuck-recovered", "split-order-quarantined"]),
        (PLANS, ["plan-finished", "plan-halted"]),
    ],
)
def test_declared_actions_are_recorded_on_the_way_to_the_limit(name, actions):
    answer = ask("audit", name)
    assert answer.ok
    record = AuditRecord.objects.get()
    assert (record.action, record.target_type, record.target_id) == (
        "selfcheck-probed", "job", name,
    )  # fmt: skip
    assert answer.evidence == (
        f"record {record.pk} (selfcheck-probed) was written and found;"
        f" a walk to its limit recorded {', '.join(actions)}"
    )


def test_audit_record_that_the_database_refuses_is_a_no_and_the_rest_is_asked(capsys):
    with refusing("recovery_auditrecord", "1 = 1"):
        document, status = selfcheck(capsys, "metricsCollect")
    of_job = document["jobs"]["metricsCollect"]
    assert status == 1
    assert [name for name, it in of_job.items() if not it["ok"]] == ["audit"]
    assert of_job["audit"]["evidence"].startswith("no audit record could be written: ")
    assert "not this one" in of_job["audit"]["evidence"]
    assert "recovery_auditrecord" in of_job["audit"]["remedy"]


def test_where_nothing_can_be_audited_no_limit_holds_either():
    with refusing("recovery_auditrecord", "1 = 1"):
        answers = [ask(question, OUTBOX) for question in ("limit", "audit", "lock")]
    assert [answer.ok for answer in answers] == [False, False, True]
    assert "was pending" in answers[0].evidence, "no audit record, no change"


def test_audit_that_fails_in_the_code_is_a_no(job, monkeypatch):
    def fail(**_record):
        raise RuntimeError("the audit is out")

    monkeypatch.setattr("recovery.audit.record", fail)
    answer = ask("audit")
    assert not answer.ok
    assert answer.evidence == "no audit record could be written: RuntimeError: the audit is out"


def test_audit_record_that_is_not_to_be_found_is_a_no(job, monkeypatch):
    monkeypatch.setattr("recovery.audit.record", lambda **record: AuditRecord(pk=0, **record))
    answer = ask("audit")
    assert (answer.ok, "is not to be found" in answer.evidence) == (False, True)


def test_declared_action_that_is_not_recorded_is_a_no(monkeypatch):
    monkeypatch.setattr("ledger.rows._record_death", lambda *_: None)
    answer = ask("audit", OUTBOX)
    assert not answer.ok
    assert answer.evidence == (
        "it declares outbox-entry-dead, but a walk to its limit did not record it"
    )


def test_walk_that_fails_leaves_the_actions_unseen(job, monkeypatch):
    def never(_rehearsal):
        raise UnprovenError("it goes on for ever", remedy="Stop it.")

    limit = Limit("JOB_OUTBOX_MAX_ATTEMPTS", never)
    declare(monkeypatch, limit=limit, audit_actions=("thing-done",))
    answer = ask("audit")
    assert (answer.ok, answer.remedy) == (False, "Stop it.")
    assert answer.evidence.endswith("the walk to its limit failed: it goes on for ever")


def test_actions_without_a_proof_are_named(job, monkeypatch):
    declare(monkeypatch, audit_actions=("plan-halted",))
    answer = ask("audit")
    assert answer.ok
    assert answer.evidence.endswith("it declares plan-halted, which no proof leads to")


@pytest.mark.parametrize("action", ["", "Not A Name", "a_b", "x" * 101])
def test_action_that_is_no_name_is_a_no(job, monkeypatch, action):
    declare(monkeypatch, audit_actions=(action,))
    answer = ask("audit")
    assert (answer.ok, repr(action) in answer.evidence) == (False, True)


def test_excused_action_is_not_missed(job, monkeypatch):
    def proof(rehearsal):
        rehearsal.excuse("thing-done")
        return "seen"

    limit = Limit("JOB_OUTBOX_MAX_ATTEMPTS", proof)
    declare(monkeypatch, limit=limit, audit_actions=("thing-done",))
    assert ask("audit").ok


# Rehearsals


def test_rehearsal_is_kept_out_of_log_queue_and_database(job, caplog, rung):
    wake = []

    def proof(rehearsal):
        leases.logger.error("alarm")
        Job.objects.filter(name=NAME).update(last_error=rehearsal.key)
        wakeups.wake_on_commit(NAME)
        wake.append(rehearsal)
        return "seen"

    assert limits.walk(Limit("JOB_OUTBOX_MAX_ATTEMPTS", proof)).evidence == "seen"
    assert wake
    assert caplog.records == []
    assert row().last_error == ""
    assert not OrmQ.objects.exists()
    assert not wakeups.pending(NAME)
    leases.logger.error("alarm")
    assert [it.message for it in caplog.records] == ["alarm"]


def test_rehearsal_that_fails_is_rolled_back_too(job):
    def fail():
        with rehearsed():
            Job.objects.filter(name=NAME).update(last_error="left")
            raise UnprovenError("no")

    with pytest.raises(UnprovenError):
        fail()
    assert row().last_error == ""


# The command


def test_people_get_a_table_the_reasons_the_findings_and_a_verdict(capsys, settings):
    settings.METRICS_ENABLED = False
    lines = said(capsys, OUTBOX, "metricsCollect").splitlines()
    assert lines[0].split() == ["job", "lock", "heartbeat", "limit", "metric", "audit"]
    assert [line.split() for line in lines[1:3]] == [
        ["metricsCollect", "Y", "Y", "Y", "N", "Y"],
        [OUTBOX, "Y", "Y", "Y", "N", "Y"],
    ]
    why = lines.index(
        f"N metric of metricsCollect, {OUTBOX}: metrics are off: METRICS_ENABLED=false"
    )
    assert lines[why + 1] == "  Set METRICS_ENABLED=true."
    assert any(line.startswith("error workers-silent: ") for line in lines)
    assert lines[-1].startswith("something is wrong: 8 of 10 answers are yes; 1 error")


def test_evidence_is_printed_where_it_is_asked_for(capsys):
    runner.run_job("metricsCollect")
    call_command("selfcheck", OUTBOX, "-v", "2")
    text = capsys.readouterr().out
    assert f"Y {OUTBOX} lock: taken, and a second holder was refused by " in text
    assert text.splitlines()[-1].startswith("fine: 5 of 5 answers are yes")


def test_lanes_are_asked_with_their_job(capsys, settings):
    settings.JOB_OUTBOX_DRAINS = 2
    schedules.mend()
    second = f"{OUTBOX}:2"
    assert list(selfcheck(capsys, OUTBOX)[0]["jobs"]) == [OUTBOX, second]
    document, _status = selfcheck(capsys, second)
    assert list(document["jobs"]) == [second]
    assert all(it["ok"] for it in document["jobs"][second].values())


def test_unknown_job_is_a_2_that_names_those_there_are():
    with pytest.raises(CommandError, match=f"'nope'; there are: .*{OUTBOX}") as refused:
        call_command("selfcheck", OUTBOX, "nope")
    assert refused.value.returncode == 2


def test_finding_that_is_an_error_is_a_1(capsys, monkeypatch):
    runner.run_job("metricsCollect")
    for severity, status in ((Severity.WARNING, 0), (Severity.ERROR, 1)):
        found = Finding(severity, "odd", "Odd.", "Even it out.")
        monkeypatch.setattr(findings, "_examinations", {"oddity": lambda found=found: [found]})
        document, left = selfcheck(capsys)
        assert document["findings"] == [
            {"severity": severity, "id": "odd", "finding": "Odd.", "remedy": "Even it out."}
        ]
        assert (left, document["ok"]) == (status, not status)


def test_examination_that_fails_is_a_finding(capsys, monkeypatch):
    def burst():
        raise RuntimeError("no")

    monkeypatch.setattr(findings, "_examinations", {"oddity": burst, "other": lambda: []})
    document, status = selfcheck(capsys)
    (finding,) = document["findings"]
    assert finding["finding"] == "The examination of oddity failed: RuntimeError: no."
    assert (finding["id"], status) == ("examination-failed", 1)


def test_running_cluster_passes(manage, eventually):
    cluster = manage.start("qcluster")

    def passes():
        done = manage("selfcheck", "--json")
        document = done.json()
        assert document["ok"], done.stdout
        return done.returncode == 0

    eventually(lambda: Job.objects.get(name=OUTBOX).last_status == "ok")
    eventually(passes, deadline_s=120)
    assert not cluster.has_ended()
    assert not JobRun.objects.exclude(status__in=("ok", "running")).exists()


def test_database_that_is_not_there_is_told_in_one_line(manage, tmp_path):
    elsewhere = {
        "sqlite": f"sqlite:///{tmp_path / 'empty.sqlite3'}",
        "mysql": f"mysql://u:p@127.0.0.1:{closed_port()}/none",
    }
    done = manage("selfcheck", "--json", env={"DATABASE_URL": elsewhere[connection.vendor]})
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert "Is it reachable (DATABASE_URL), and did you run manage.py migrate?" in done.stderr
    assert manage("selfcheck", "nope").returncode == 2


def test_checks_that_would_stop_other_commands_are_findings(manage):
    done = manage("selfcheck", "metricsCollect", "--json", env={"QCLUSTER_WORKERS": "1"})
    assert done.returncode == 1
    errors = [it for it in done.json()["findings"] if it["severity"] == "error"]
    assert "recovery.E003" in {it["id"] for it in errors}
    assert link.configured() == bool(current.REDIS_URL)


@pytest.mark.sqlite
def test_database_that_takes_no_write_ends_it_at_once():
    """Each question would wait for the lock in its turn, for minutes in all."""
    other = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 50")
        with pytest.raises(CommandError, match="database is locked"):
            call_command("selfcheck")
    finally:
        other.close()
        connection.close()
