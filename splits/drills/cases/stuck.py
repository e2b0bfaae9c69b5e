"""Kill a finalizer between two steps."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from ledger import outbox
from splits import audit, lifecycle, stuck
from splits.drills.exercise import Exercise
from splits.drills.goods import make_order
from splits.drills.liveness import may_live
from splits.drills.overrides import settings_here
from splits.drills.proofs import (
    is_finalized,
    prove_order_audited,
    prove_posted_once,
)
from splits.drills.registry import drill
from splits.leash import KILLED
from splits.models import SplitOrder, StepName
from splits.processes import Child, Children

RECOVER_JOB = "recoverFinalizeStuck"
KILLED_AFTER = StepName.CREATE_OUTPUTS
FAULT = f"finalize.after_step.{KILLED_AFTER}=crash"
DONE = list(StepName)[: list(StepName).index(KILLED_AFTER) + 1]
THRESHOLD_S = 1.0
MANY = 1_000_000


@drill(
    "stuck",
    jobs=(lifecycle.FINALIZE_JOB, RECOVER_JOB, outbox.JOB),
    steps=(
        "receive a disposable board and make an order of it, which no worker takes",
        f"finalize it in a process of its own that is killed (-9) after {KILLED_AFTER}",
        "find it stuck, prove that no transaction holds its row, reset it on the record",
        "let it be finalized from its first step not done, and posted once",
        "look for audit record and metrics, then reverse the order and take the board out",
    ),
)
def kill_finalizer(exercise: Exercise) -> None:
    """Kill a finalizer between two steps: found, proven free, reset, finalized, posted once."""
    detected = exercise.count("job_stuck_detected_total")
    recovered = exercise.count("finalize_recoveries_total")
    order = make_order(exercise.code)
    exercise.note(f"order {order.number} made, disposable and not due")
    _kill(exercise, order)
    _recover(exercise, order)
    exercise.prove_counted(detected)
    exercise.prove_counted(recovered)
    _finish(exercise, order)
    prove_posted_once(exercise, order)


def _kill(exercise: Exercise, order: SplitOrder) -> None:
    """Let a finalizer die, and prove where it left the order."""
    with _finalizer(order) as child:
        exercise.note(f"a process finalizes it with RECOVERY_FAULTPOINTS={FAULT}")
        exercise.wait("the process has ended", lambda: child.process.poll() is not None)
        status = child.process.returncode
    killed = status == KILLED + signal.SIGKILL
    exercise.prove(f"it was killed by signal {signal.SIGKILL:d}", killed, child_status=status)
    order.refresh_from_db()
    exercise.prove(
        "the order says in progress", order.finalize_in_progress, finalizer=order.finalize_owner
    )
    host, pid = order.finalize_owner.split(":")[:2]
    exercise.prove(f"its finalizer, process {pid}, is dead", not may_live(host, int(pid)))
    done = [step.name for step in order.steps.all()]
    exercise.prove(f"steps done: {', '.join(done)}", done == DONE, steps_before=done)


@contextmanager
def _finalizer(order: SplitOrder) -> Iterator[Child]:
    """Run ``manage.py finalize`` on a leash: it ends with this process, however that ends."""
    environ = {**os.environ, "RECOVERY_FAULTPOINTS": FAULT}
    base = Path(settings.BASE_DIR)
    command = [sys.executable, str(base / "manage.py"), "finalize", order.number]
    with (
        tempfile.TemporaryDirectory(prefix="drill-") as folder,
        Children(cwd=base, environ=environ) as children,
    ):
        yield children.start("the finalizer", command, log=Path(folder) / "finalizer.log")


def _recover(exercise: Exercise, order: SplitOrder) -> None:
    """Find the order and reset it, as recoverFinalizeStuck does after a longer time."""
    request = stuck.Request(author=exercise.author, threshold_s=THRESHOLD_S)
    (found,) = exercise.wait(
        f"detected: no progress for longer than {THRESHOLD_S:g} s",
        lambda: list(stuck.find(request, [order.number])),
    )
    # Whatever this installation's limits, this order is to go on.
    with settings_here(JOB_FINALIZE_RETRY_LIMIT=MANY, JOB_STUCK_ALERT_THRESHOLD=MANY):
        recovery = exercise.wait("no transaction holds its row", lambda: _freed(found, request))
    result = recovery.result
    exercise.prove(f"reset: {result}", result is stuck.Result.RECOVERED, recovery=str(result))
    record = prove_order_audited(exercise, order, audit.RECOVERED)
    how = record.evidence["proof"]["how"]
    exercise.prove(f"it keeps the proof: {how}", how, proof=record.evidence["proof"])


def _freed(found: stuck.Found, request: stuck.Request) -> stuck.Recovery | None:
    recovery = stuck.recover(found, request)
    return None if recovery.result is stuck.Result.HELD else recovery


def _finish(exercise: Exercise, order: SplitOrder) -> None:
    """Let the order be finalized, and prove that it was from the first step not done."""
    exercise.work(lifecycle.FINALIZE_JOB, "finalized", lambda: is_finalized(order))
    epochs = {step.name: step.epoch for step in order.steps.order_by("pk")}
    before = {epochs.pop(name) for name in DONE}
    went_on = len(before) == 1 and min(epochs.values()) > max(before)
    what = f"it went on from {next(iter(epochs))}, under a later epoch"
    exercise.prove(what, went_on, steps_after=epochs)
