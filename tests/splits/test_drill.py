"""``manage.py drill``: each drill passes and leaves nothing, alone, beside workers, cut short."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from ledger.models import Account, EntryStatus, OutboxEntry
from recovery import pauses, schedules
from recovery.models import AuditRecord
from splits.drills import registry
from splits.drills.cases import slow_webhook
from splits.drills.exercise import is_worked
from splits.models import Breaker, Lot, OrderStatus, SplitOrder
from tests.factories import SplitOrderFactory, hang
from tests.processes import environment
from tests.splits.drills import assert_nothing_is_left, drill
from tests.splits.state import contents

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = ["poison", "redis-down", "slow-webhook", "stuck"]
SHORT = {"JOB_LOCK_TTL_SEC": "1", "SPLIT_COMPLETION_TIMEOUT_SEC": "0.5"}


def refusal(*arguments):
    with pytest.raises(CommandError) as caught:
        call_command("drill", *arguments)
    assert caught.value.returncode == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_passed(status, document, name):
    assert (status, document["ok"], document["error"]) == (0, True, ""), document
    assert document["drill"] == name
    assert all(moment["ok"] for moment in document["timeline"])
    times = [moment["at_s"] for moment in document["timeline"]]
    assert times == sorted(times)
    assert_on_record(document["code"], name, ok=True)
    assert_nothing_is_left(document["code"])
    assert not any(account.balance for account in Account.objects.all())


def assert_on_record(code, name, *, ok):
    finished, started = AuditRecord.objects.filter(target_type="drill", target_id=code)
    assert (started.action, finished.action) == ("drill-started", "drill-finished")
    assert started.actor == finished.actor
    assert started.actor.startswith("cli:")
    assert started.evidence["drill"] == finished.evidence["drill"] == name
    assert finished.evidence["ok"] is ok


# How it is called


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "poison, redis-down, slow-webhook, stuck"),
        (["stuk"], "poison, redis-down, slow-webhook, stuck"),
        (["stuck", "--list"], "--clean"),
        (["--list", "--clean"], "--clean"),
        (["stuck", "--timeout", "0"], "seconds"),
        (["stuck", "--timeout", "nan"], "seconds"),
        (["stuck", "--timeout", "soon"], "seconds"),
        (["stuck", "--timeout", "3601"], "3600"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(arguments, hint):
    assert hint in refusal(*arguments)


def test_drills_are_listed(capsys):
    assert [it["name"] for it in drill("--list")[1]["drills"]] == NAMES
    call_command("drill", "--list")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES


def test_new_drill_is_one_function():
    try:

        @registry.drill("yawn", jobs=(), steps=("yawn",))
        def yawn(exercise):
            """Yawn."""
            exercise.prove("it yawned", holds=True, wide=7)

        status, document = drill("yawn", "--reason", "tired")
    finally:
        registry._cases.pop("yawn")
    assert_passed(status, document, "yawn")
    assert document["evidence"] == {"wide": 7}
    assert set(AuditRecord.objects.values_list("reason", flat=True)) == {"tired"}


@pytest.mark.parametrize("name", ["stuck", "poison", "slow-webhook"])
def test_dry_run_says_what_it_would_do_and_changes_nothing(name):
    before = contents()
    status, document = drill(name, "--dry-run")
    assert (status, document["refused"]) == (0, [])
    assert len(document["would"]) >= 4
    assert contents() == before


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_refused_while_a_real_order_is_stuck(arguments):
    order = hang(SplitOrderFactory())
    before = contents()
    status, document = drill("poison", *arguments)
    assert status == 1
    (objection,) = document["refused"]
    assert order.number in objection
    assert contents() == before


def test_refused_while_its_job_is_paused(capsys):
    schedules.ensure_rows()
    pauses.pause("processLedgerOutbox", actor="cli:ann")
    with pytest.raises(SystemExit) as leaving:
        call_command("drill", "poison")
    assert leaving.value.code == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("refused: job processLedgerOutbox is paused")


def test_job_that_it_does_not_need_may_be_paused():
    schedules.ensure_rows()
    pauses.pause("recoverFinalizeStuck", actor="cli:ann")
    assert drill("poison", "--dry-run")[0] == 0
    assert drill("stuck", "--dry-run")[0] == 1


def test_nothing_to_drill_without_redis(no_redis):
    assert "REDIS_URL is not set" in refusal("redis-down")


def test_people_get_a_timeline_and_a_last_line(capsys):
    call_command("drill", "poison")
    head, *timeline, last = capsys.readouterr().out.splitlines()
    assert head.startswith("drill poison: DRILL-")
    assert all(line.split()[1:3] == ["s", "ok"] for line in timeline)
    assert last.startswith("passed in ")


def test_failure_is_the_last_line(capsys):
    with pytest.raises(SystemExit) as leaving:
        call_command("drill", "slow-webhook", "--timeout", "0.001")
    assert leaving.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: not within 0.001 s")
    assert_nothing_is_left()


# Each drill


def test_killed_finalizer_is_found_reset_and_its_order_posted_once(manage, no_redis):
    done = manage("drill", "stuck", "--json", env={"REDIS_URL": ""})
    document = done.json()
    assert_passed(done.returncode, document, "stuck")
    evidence = document["evidence"]
    assert evidence["child_status"] == 128 + signal.SIGKILL
    assert evidence["steps_before"] == ["validate", "consume_source", "create_outputs"]
    assert set(evidence["steps_after"]) == {"post_ledger", "notify"}
    assert evidence["ledger"]["transactions"] == 1
    assert evidence["metrics"] == {
        "job_stuck_detected_total": 1, "finalize_recoveries_total": 1,
    }  # fmt: skip
    assert SplitOrder.objects.get().status == OrderStatus.REVERSED


def test_poison_dies_and_holds_nobody_else_back():
    status, document = drill("poison")
    assert_passed(status, document, "poison")
    entry = OutboxEntry.objects.get(pk=document["evidence"]["entry"])
    assert (entry.status, entry.attempts) == (EntryStatus.DISCARDED, 10)
    assert set(document["evidence"]["audit_records"]) == {
        "outbox-entry-dead", "outbox-entry-discarded",
    }  # fmt: skip
    assert document["evidence"]["metrics"]['outbox_failures_total{code="unbalanced"}'] >= 1


def test_lost_redis_degrades_this_process_alone_and_comes_back(redis_up):
    status, document = drill("redis-down")
    assert_passed(status, document, "redis-down")
    evidence = document["evidence"]
    assert (evidence["degraded"], evidence["warnings"]) == (True, 1)
    assert evidence["log"] == ["redis_down", "redis_back"]
    assert evidence["ledger"]["transactions"] == 1


def test_redis_that_is_down_already_is_no_drill(redis_up):
    redis_up.stop()
    status, document = drill("redis-down")
    assert (status, document["error"]) == (1, "not so: Redis answers")


def test_slow_webhook_is_given_up_and_told_again_with_the_same_key():
    status, document = drill("slow-webhook")
    assert_passed(status, document, "slow-webhook")
    (key,) = set(document["evidence"]["idempotency_keys"])
    assert key == f"split-order:{document['code']}:finalized"
    assert document["evidence"]["metrics"] == {"finalize_retry_attempts_total": 1}


def test_slow_webhook_passes_where_a_busy_machine_answers_late(monkeypatch):
    hear = slow_webhook.Ear.hear

    def hear_and_be_late(ear, post):
        hear(ear, post)
        time.sleep(2 * slow_webhook.TIMEOUT_S)

    monkeypatch.setattr(slow_webhook.Ear, "hear", hear_and_be_late)
    assert_passed(*drill("slow-webhook"), "slow-webhook")


def test_slow_webhook_leaves_the_real_breaker_alone(settings):
    settings.SPLIT_COMPLETION_WEBHOOK = "http://127.0.0.1:9/done"
    settings.SPLIT_COMPLETION_BREAKER_FAILURES = 1
    real = "http://127.0.0.1:9"
    Breaker.objects.create(endpoint=real, failures=3)
    assert drill("slow-webhook")[0] == 0
    assert list(Breaker.objects.values_list("endpoint", "failures", "opened_at")) == [
        (real, 3, None)
    ]
    assert settings.SPLIT_COMPLETION_WEBHOOK == "http://127.0.0.1:9/done"


def test_drills_pass_where_metrics_are_off(settings):
    settings.METRICS_ENABLED = False
    status, document = drill("poison")
    assert_passed(status, document, "poison")
    assert "METRICS_ENABLED" in str(document["timeline"])


def test_drills_pass_under_the_tightest_limits(manage):
    tight = {
        "JOB_FINALIZE_RETRY_LIMIT": "1",
        "JOB_STUCK_ALERT_THRESHOLD": "0",
        "JOB_OUTBOX_MAX_ATTEMPTS": "1",
        "SPLIT_COMPLETION_BREAKER_FAILURES": "1",
    }
    for name in ("stuck", "poison", "slow-webhook"):
        done = manage("drill", name, "--json", env=tight)
        assert_passed(done.returncode, done.json(), name)


def test_poison_waits_for_no_backoff_before_its_second_and_last_attempt(settings):
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 2
    settings.JOB_BACKOFF_BASE_SEC = 1_000
    assert_passed(*drill("poison"), "poison")


# Beside workers


def test_workers_recover_what_the_drill_breaks(manage, eventually):
    cluster = manage.start("qcluster")
    eventually(lambda: is_worked("finalizeRetryWorker") and is_worked("processLedgerOutbox"))
    for name in ("stuck", "poison"):
        done = manage("drill", name, "--json")
        document = done.json()
        assert_passed(done.returncode, document, name)
        steps = str(document["timeline"])  # one that was done before the drill looked says nothing
        assert "(by the workers)" in steps or "ran in this process" not in steps
    cluster.signal(signal.SIGTERM)
    assert cluster.finish().returncode == 0


def test_other_orders_of_the_house_are_untouched(manage):
    order = SplitOrderFactory(at=OrderStatus.DRAFT)
    assert manage("drill", "stuck").returncode == 0
    order.refresh_from_db()
    assert (order.status, order.source_lot.status) == (OrderStatus.DRAFT, "available")


# Cut short


def stopped(manage, eventually, name, fault):
    """Start a drill that stops itself at a fault point; return it once it has."""
    env = {**SHORT, "REDIS_URL": "", "RECOVERY_FAULTPOINTS": fault}
    started = manage.start("drill", name, "--json", env=env)
    eventually(started.is_stopped)
    return started


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("stuck", "finalize.in_step.post_ledger=stop@1"),
        ("stuck", "outbox.before_commit=stop@1"),
        ("poison", "outbox.before_commit=stop@2"),
        ("slow-webhook", "finalize.before_step.notify=stop@1"),
    ],
)
def test_interrupted_drill_cleans_up(manage, eventually, name, fault, signum):
    started = stopped(manage, eventually, name, fault)
    started.signal(signum)
    started.signal(signal.SIGCONT)
    done = started.finish()
    document = done.json()
    assert (done.returncode, document["ok"], document["error"]) == (1, False, "interrupted")
    assert document["timeline"][-1]["ok"]
    assert_on_record(document["code"], name, ok=False)
    assert_nothing_is_left(document["code"])


def test_drill_whose_reader_is_gone_cleans_up(transactional_db):
    command = [sys.executable, "manage.py", "drill", "poison"]
    env = environment() | {"REDIS_URL": ""}
    with subprocess.Popen(
        command, cwd=settings.BASE_DIR, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout.readline().startswith(b"drill poison")
        process.stdout.close()
        assert process.wait(150) == 0
    assert AuditRecord.objects.get(action="drill-finished").evidence["ok"]
    assert_nothing_is_left()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("stuck", "finalize.in_step.post_ledger=stop@1"),
        ("stuck", "outbox.after_commit=stop@1"),
        ("poison", "outbox.before_commit=stop@1"),
        ("poison", "outbox.after_commit=stop@2"),
        ("slow-webhook", "finalize.before_step.notify=stop@2"),
    ],
)
def test_what_a_killed_drill_leaves_is_cleaned_up(manage, eventually, name, fault):
    started = stopped(manage, eventually, name, fault)
    status, document = drill("--clean")
    assert (status, document["cleaned"], len(document["under_way"])) == (1, [], 1), "it lives"
    started.kill_all()
    code = AuditRecord.objects.get(action="drill-started").target_id
    assert Lot.objects.filter(code__startswith=code).exists()
    done = manage("drill", "--clean", "--json", env={**SHORT, "REDIS_URL": ""})
    cleaned = {"cleaned": [code], "left": {}, "under_way": {}}
    assert (done.returncode, done.json()) == (0, cleaned), done.stderr
    assert_nothing_is_left(code)


def test_next_drill_cleans_up_after_a_killed_one(manage, eventually):
    started = stopped(manage, eventually, "poison", "outbox.after_commit=stop@1")
    started.kill_all()
    done = manage("drill", "poison", "--json", env={**SHORT, "REDIS_URL": ""})
    assert_passed(done.returncode, done.json(), "poison")


SLOW_TO_START = """
import sys, time
if sys.orig_argv[-2] == "finalize" and "splits.leash" not in sys.orig_argv:
    time.sleep(600)
"""
"""Loaded by each Python: the finalizer is not over before it is looked for."""


def test_child_does_not_outlive_a_killed_drill(manage, eventually, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW_TO_START)
    env = {"REDIS_URL": "", "TMPDIR": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    started = manage.start("drill", "stuck", env=env)

    def finalizers():
        # Found by what it was started with: it is in a session of its own.
        mine = f"TMPDIR={tmp_path}".encode()
        return [pid for pid in pids() if mine in environ_of(pid) and b"finalize" in line_of(pid)]

    eventually(finalizers)
    os.kill(started.pid, signal.SIGKILL)
    started.process.wait()
    eventually(lambda: not finalizers())
    assert drill("--clean")[1]["left"] == {}
    assert_nothing_is_left()


def pids():
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def environ_of(pid):
    return content(pid, "environ").split(b"\0")


def line_of(pid):
    return content(pid, "cmdline").split(b"\0")


def content(pid, name):
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
