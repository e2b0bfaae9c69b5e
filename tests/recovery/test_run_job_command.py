"""``manage.py run_job``: one guarded run, its outcome as JSON and exit status."""

import json
import signal

import pytest
from django.core.management import CommandError, call_command

from recovery import leases, pauses, stopping, wakeups
from recovery.models import Job, JobRun
from recovery.registry import Batch
from tests.recovery.engine import NAME, expire, in_thread, register, row, statuses
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

OUTBOX = "processLedgerOutbox"
LONG = {"JOB_LOCK_TTL_SEC": "3600", "JOB_TASK_TIMEOUT_SEC": "7200"}
"""A lease that outlasts the start of any other process."""


def run(capsys, name=NAME):
    status = 0
    try:
        call_command("run_job", name, "--json")
    except SystemExit as left:
        status = left.code
    return status, json.loads(capsys.readouterr().out)


def test_run_is_told_in_json(rung, monkeypatch, capsys):
    register(monkeypatch, lambda _run: Batch({"posted": 3}))
    status, told = run(capsys)
    assert status == 0
    assert told.pop("duration_s") >= 0
    assert told == {"job": NAME, "status": "ok", "reason": "", "result": {"posted": 3}}


def test_fresh_database_is_enough(rung, capsys):
    Job.objects.all().delete()
    assert run(capsys, OUTBOX)[0] == 0
    assert Job.objects.get(name=OUTBOX).last_status == "ok"


def test_failed_run_is_a_1(rung, monkeypatch, capsys):
    register(monkeypatch, lambda _run: 1 / 0)
    status, told = run(capsys)
    assert (status, told["status"]) == (1, "failed")
    assert told["reason"].startswith("ZeroDivisionError")


def test_held_lock_is_a_3(rung, monkeypatch, capsys):
    register(monkeypatch)
    leases.acquire(NAME)
    status, told = run(capsys)
    assert (status, told["status"], told["reason"]) == (3, "skipped", "locked")


def test_paused_job_is_not_run(rung, monkeypatch, capsys):
    register(monkeypatch)
    pauses.pause(NAME, actor="cli:ann")
    status, told = run(capsys)
    assert (status, told["reason"]) == (1, "paused")
    assert not JobRun.objects.exists()


def test_unknown_job_is_a_2():
    with pytest.raises(CommandError, match="there are: ") as refused:
        call_command("run_job", "nope")
    assert refused.value.returncode == 2


def test_wake_up_that_found_the_command_at_work_is_not_lost(no_redis, monkeypatch, capsys):
    from django_q.models import OrmQ

    def work(_run):
        in_thread(lambda: wakeups.wake(NAME))
        return Batch()

    register(monkeypatch, work)
    run(capsys)
    assert OrmQ.objects.count() == 2


def test_people_get_text(rung, monkeypatch, capsys):
    register(monkeypatch, lambda _run: Batch({"posted": 3}))
    call_command("run_job", NAME)
    assert "testJob: ok in" in capsys.readouterr().out


def test_terminate_ends_the_run_after_its_batch(rung, monkeypatch, capsys):
    calls = []

    def work(_run):
        calls.append(1)
        signal.raise_signal(signal.SIGTERM)
        return Batch(more=True)

    before = signal.getsignal(signal.SIGTERM)
    register(monkeypatch, work)
    assert run(capsys)[0] == 0
    assert (len(calls), statuses(), row().lease_owner) == (1, ["ok"], "")
    assert stopping.asked()
    assert signal.getsignal(signal.SIGTERM) == before


def test_killed_run_is_taken_over_and_buried(manage):
    fault = {"RECOVERY_FAULTPOINTS": "lease.acquired=crash"}
    killed = manage.start("run_job", OUTBOX, env=LONG | fault)
    assert killed.finish().returncode == -signal.SIGKILL
    assert statuses(OUTBOX) == ["running"]
    assert manage("run_job", OUTBOX).returncode == 3
    expire(OUTBOX)
    done = manage("run_job", OUTBOX, "--json")
    assert (done.returncode, done.json()["status"]) == (0, "ok")
    assert statuses(OUTBOX) == ["died", "ok"]
    assert row(OUTBOX).fence == 2


def test_injected_error_at_the_start_is_a_failed_run(manage):
    done = manage("run_job", OUTBOX, "--json", env={"RECOVERY_FAULTPOINTS": "lease.acquired=raise"})
    assert (done.returncode, done.json()["status"]) == (1, "failed")
    assert row(OUTBOX).lease_owner == ""


def test_frozen_run_blocks_its_job_until_it_goes_on(manage):
    fault = {"RECOVERY_FAULTPOINTS": "lease.acquired=stop"}
    frozen = manage.start("run_job", OUTBOX, env=LONG | fault)
    eventually(frozen.is_stopped)
    assert manage("run_job", OUTBOX).returncode == 3
    frozen.signal(signal.SIGCONT)
    assert frozen.finish().returncode == 0
    assert manage("run_job", OUTBOX).returncode == 0
