"""Every fault point x {crash, stop, raise}, in real processes: recovered, and all of it right."""

import ast
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import ledger
import recovery
import splits
from ledger.models import OutboxEntry
from ledger.outbox import JOB as OUTBOX
from recovery.models import AuditRecord, JobRun
from splits import audit
from splits.lifecycle import FINALIZE_JOB
from splits.models import SplitOrder, StepName
from tests.faults.workload import BRISK, RESCUING, SHORT, Workload, run_now
from tests.splits.state import contents
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

STUCK = "recoverFinalizeStuck"
WITHIN = [f"finalize.in_step.{step}" for step in StepName]
BOUNDARIES = [
    *(f"finalize.{where}.{step}" for step in StepName for where in ("before_step", "after_step")),
    "finalize.before_finish",
]
IN_BATCH = ["outbox.entry:split-order:", "outbox.before_commit"]
BESIDE_BATCH = ["lease.acquired", "outbox.after_commit"]
CONVOY = ["convoy.before_commit", "convoy.after_commit"]
"""Tried in tests/splits/test_convoy.py."""
PLANS = ["plan.before_item", "plan.after_item"]
"""Tried in tests/ledger/test_dlq_command.py."""
ARCHIVE = ["archive.before_rename", "archive.after_rename", "archive.before_delete"]
"""Tried in tests/faults/test_archive.py."""
MATRIX = [*WITHIN, *BOUNDARIES, *IN_BATCH, *BESIDE_BATCH, *CONVOY, *PLANS, *ARCHIVE]

AT_ONCE = 6
HELD = {"DATABASE_IDLE_TRANSACTION_SEC": "600"}
"""Environment of who is stopped in a transaction until all are, however long their starts take."""


def fault_points_of_the_code() -> Iterator[str]:
    """Yield the names passed to ``faultpoint``, as patterns where parts of them vary."""
    for package in (recovery, ledger, splits):
        for path in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("faultpoint"):
                    yield pattern(node.args[0])


def pattern(name: ast.expr) -> str:
    parts = name.values if isinstance(name, ast.JoinedStr) else [name]
    texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
    return "".join(".+" if text is None else re.escape(str(text)) for text in texts)


def test_matrix_has_every_fault_point_of_the_code_and_no_other():
    patterns = set(fault_points_of_the_code())
    assert len(patterns) >= 8
    untried = [it for it in patterns if not any(re.fullmatch(it, point) for point in MATRIX)]
    assert not untried
    assert not [point for point in MATRIX if not any(re.fullmatch(it, point) for it in patterns)]


@pytest.fixture
def finalizers(manage):
    """Return what starts a finalizer for each order, each with a fault at a point of its own."""

    def one(number, point, action):
        env = HELD | {"RECOVERY_FAULTPOINTS": f"{point}={action}"}
        return manage.start("finalize", number, "--json", env=env)

    def start(numbers, points, action):
        victims = []
        for begin in range(0, len(points), AT_ONCE):
            group = zip(numbers[begin:][:AT_ONCE], points[begin:][:AT_ONCE], strict=True)
            begun = [one(number, point, action) for number, point in group]
            for victim in begun:
                eventually(victim.is_stopped if action == "stop" else victim.has_ended)
            victims += begun
        return victims

    return start


def recovered_by_command(manage, *, reason="worker lost"):
    """Reset what hangs by the operator's command, once no dead transaction is left."""

    def reset():
        manage("recover_stuck", "--threshold", "0", "--reason", reason, "--json")
        return not SplitOrder.objects.filter(finalize_in_progress=True).exists()

    eventually(reset)


def test_finalizers_that_crash_are_recovered_by_command(manage, finalizers):
    points = [*BOUNDARIES, *WITHIN]
    work = Workload(len(points))
    for victim in finalizers(work.numbers, points, "crash"):
        assert victim.finish().returncode == -signal.SIGKILL
    assert SplitOrder.objects.filter(finalize_in_progress=True).count() == len(points)
    recovered_by_command(manage)
    work.carry_on()
    work.assert_settled(audited=dict.fromkeys(work.numbers, audit.RECOVERED))
    assert set(work.attempts().values()) == {2}
    for record in AuditRecord.objects.exclude(target_type="plan"):
        assert record.reason == "worker lost"
        assert "was granted" in record.evidence["proof"]["how"]


@pytest.mark.parametrize("late", [True, False], ids=["finalized", "reset"])
def test_finalizers_that_stop_are_recovered_by_the_job_and_commit_nothing_when_they_wake(
    finalizers, settings, late
):
    work = Workload(len(BOUNDARIES))
    victims = finalizers(work.numbers, BOUNDARIES, "stop")
    settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC = 0
    assert run_now(STUCK).result == {"recovered": len(victims)}
    audited = dict.fromkeys(work.numbers, audit.RECOVERED)
    if late:
        work.carry_on()
        work.assert_settled(audited=audited)
    before = contents()
    for victim in victims:
        victim.signal(signal.SIGCONT)
    for victim, number in zip(victims, work.numbers, strict=True):
        done = victim.finish()
        assert done.returncode == 1
        assert [(it["number"], it["code"]) for it in done.json()["failed"]] == [(number, "fenced")]
    assert contents() == before
    if not late:
        work.carry_on()
    work.assert_settled(audited=audited)
    assert set(work.attempts().values()) == {2}


def test_finalizers_stopped_in_a_transaction_hold_their_orders_until_they_wake_or_are_killed(
    manage, finalizers
):
    work = Workload(2 * len(WITHIN))
    victims = finalizers(work.numbers, WITHIN * 2, "stop")
    before = contents()
    holders = holders_named(manage, work.numbers)
    for victim, number in zip(victims, work.numbers, strict=True):
        assert holders[number]["connection_id"]
        assert port_of(holders[number]) in victim.local_ports()
    assert contents() == before

    killed, woken = victims[: len(WITHIN)], victims[len(WITHIN) :]
    for victim in woken:
        victim.signal(signal.SIGCONT)
    for victim in woken:
        assert victim.finish().returncode == 0
    for victim in killed:
        victim.signal(signal.SIGKILL)
    recovered_by_command(manage)
    work.carry_on()
    lost = work.numbers[: len(WITHIN)]
    work.assert_settled(audited=dict.fromkeys(lost, audit.RECOVERED))
    assert work.attempts() == {number: 1 + (number in lost) for number in work.numbers}


def holders_named(manage, numbers):
    """Return who holds each order, as several operators are told at once; none is recovered."""
    shares = [numbers[begin::AT_ONCE] for begin in range(AT_ONCE)]
    asked = [manage.start("recover_stuck", *it, "--threshold", "0", "--json") for it in shares]
    answers = [command.finish() for command in asked]
    assert {answer.returncode for answer in answers} == {1}
    assert not [answer for answer in answers if answer.json()["recovered"]]
    return {held["number"]: held["holder"] for it in answers for held in it.json()["held"]}


def port_of(holder):
    return int(holder["host"].rpartition(":")[2])


def test_finalizations_that_raise_are_charged_and_tried_again(manage):
    points = [*BOUNDARIES, *WITHIN]
    work = Workload(len(points))
    # The nth order is the first to come to the nth point: those before it failed at theirs.
    faults = ",".join(f"{point}=raise@1" for point in points)
    worker = manage("run_job", FINALIZE_JOB, "--json", env=SHORT | {"RECOVERY_FAULTPOINTS": faults})
    assert worker.json()["result"] == {"failed": len(points)}
    errors = SplitOrder.objects.values_list("last_finalize_error", flat=True)
    assert sorted(errors) == sorted(f"InjectedFaultError: injected at {it}" for it in points)
    eventually(lambda: SplitOrder.objects.due().count() == len(points))
    work.carry_on()
    work.assert_settled(audited=dict.fromkeys(work.numbers, audit.FAILED))
    assert set(work.attempts().values()) == {2}


def run_of_a_dead_worker(cluster):
    runs = JobRun.objects.filter(job_id=FINALIZE_JOB, status__in=("running", "died"))
    return runs.exclude(pid__in=cluster.started.family()).first()


def test_worker_that_crashes_in_a_cluster_is_replaced_and_its_order_recovered_by_another(cluster):
    faulty = cluster(RECOVERY_FAULTPOINTS="finalize.after_step.post_ledger=crash@1", **BRISK)
    work = Workload(1)
    run = eventually(lambda: run_of_a_dead_worker(faulty))
    eventually(faulty.is_complete)
    faulty.stop()
    healthy = cluster(**RESCUING)
    eventually(work.is_posted)
    healthy.stop()
    work.assert_settled(audited={work.numbers[0]: audit.RECOVERED})
    assert AuditRecord.objects.get().actor == f"system:{STUCK}"
    run.refresh_from_db()
    assert run.status == "died"


@pytest.fixture
def drain(manage):
    """Return what starts a drain with a fault."""

    def start(fault):
        env = SHORT | {"RECOVERY_FAULTPOINTS": fault}
        return manage.start("run_job", OUTBOX, "--json", env=env)

    return start


def last_run():
    return JobRun.objects.filter(job_id=OUTBOX).latest("id")


@pytest.mark.parametrize("point", [*IN_BATCH, *BESIDE_BATCH])
def test_drain_that_crashes_costs_no_entry_an_attempt(finalized, drain, point):
    assert drain(f"{point}=crash").finish().returncode == -signal.SIGKILL
    dead = last_run()
    finalized.carry_on()
    finalized.assert_settled()
    dead.refresh_from_db()
    assert dead.status == "died"


@pytest.mark.parametrize("point", [*IN_BATCH, *BESIDE_BATCH])
def test_drain_that_stops_is_replaced_and_commits_nothing_when_it_wakes(finalized, drain, point):
    zombie = drain(f"{point}=stop@1")
    eventually(zombie.is_stopped)
    frozen = last_run()
    finalized.carry_on()
    before = contents()
    assert bool(OutboxEntry.objects.pending().count()) == (point in IN_BATCH)
    zombie.signal(signal.SIGCONT)
    done = zombie.finish()
    assert contents() == before
    if point in IN_BATCH:
        assert done.returncode == 1
        assert "was lost" in done.json()["reason"]
    finalized.carry_on()
    finalized.assert_settled()
    frozen.refresh_from_db()
    assert frozen.status == "died"


@pytest.mark.parametrize("point", [*IN_BATCH, *BESIDE_BATCH])
def test_drain_that_raises_charges_the_entry_it_worked_and_no_other(finalized, drain, point):
    charged = {}
    if point.startswith("outbox.entry:"):
        key = f"split-order:{finalized.numbers[1]}:finalized"
        point, charged = f"outbox.entry:{key}", {key: 1}
    done = drain(f"{point}=raise").finish()
    assert done.returncode == (0 if charged else 1)
    attempts = OutboxEntry.objects.exclude(attempts=0).values_list("event_key", "attempts")
    assert dict(attempts) == charged
    eventually(lambda: OutboxEntry.objects.due().count() == OutboxEntry.objects.pending().count())
    finalized.carry_on()
    finalized.assert_settled(charged=charged)
