"""This process alone loses Redis."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ledger.outbox import JOB
from recovery import link
from recovery.leases import HOST
from recovery.metrics import job_lock_degraded
from recovery.models import JobRun
from recovery.runner import run_job
from splits import lifecycle
from splits.drills.exercise import Exercise
from splits.drills.goods import make_order
from splits.drills.overrides import settings_here
from splits.drills.proofs import finalize_here, prove_posted_once
from splits.drills.registry import drill

LOOPBACK = "127.0.0.1"
NO_REDIS = "REDIS_URL is not set: this installation has no Redis that could be down"


@drill(
    "redis-down",
    jobs=(lifecycle.FINALIZE_JOB, JOB),
    steps=(
        "let this process, and no other, look for Redis where nobody listens",
        "prove that it says so: degraded, and one warning however many calls fail",
        "run the outbox job by the lease in the database alone; finalize and post an order",
        "let it find the real Redis again, which was never touched; run the job with it",
        "reverse the order and take the board out of stock again",
    ),
    unfit=lambda: "" if link.configured() else NO_REDIS,
)
def lose_redis(exercise: Exercise) -> None:
    """Lose Redis in this process alone: degraded, at work by the database, then back."""
    exercise.prove("Redis answers", not _is_degraded())
    with _noted() as heard:
        with _nobody_there() as address, settings_here(REDIS_URL=address):
            exercise.note(f"this process looks for Redis at {address}, where nobody listens")
            _prove_degraded(exercise)
            _prove_work_goes_on(exercise)
            exercise.wait("it asked again, in vain", lambda: link.usable() and _is_degraded())
            _prove_one_warning(exercise, heard)
        exercise.note("this process looks for the real Redis again")
        exercise.wait("it is back", lambda: not _is_degraded(), log=heard)
    exercise.prove("job_lock_degraded is 0", _gauge() == 0)
    exercise.wait(f"{JOB} ran with Redis", _runs)


def _prove_degraded(exercise: Exercise) -> None:
    exercise.prove("it sees that Redis is down", _is_degraded())
    exercise.prove("job_lock_degraded is 1", _gauge() == 1, degraded=True)


def _prove_work_goes_on(exercise: Exercise) -> None:
    order = make_order(exercise.code)
    exercise.note(f"order {order.number} made, disposable and not due")
    finalize_here(exercise, order, "finalized")
    exercise.wait(f"{JOB} ran by the lease in the database alone", _runs)
    newest = JobRun.objects.filter(job_id=JOB, host=HOST, pid=os.getpid()).first()
    exercise.prove("its run is recorded", newest, run_id=newest and str(newest.run_id))
    prove_posted_once(exercise, order)
    exercise.prove("Redis is still down to this process", link.is_down())


def _prove_one_warning(exercise: Exercise, heard: list[str]) -> None:
    if not logging.getLogger(link.__name__).isEnabledFor(logging.WARNING):
        exercise.note("warnings are not logged here: not counted")
        return
    warnings = heard.count("redis_down")
    exercise.prove(f"{warnings} warning", warnings == 1, warnings=warnings)


def _is_degraded() -> bool:
    """Ask Redis, where it is time to ask, and tell whether it is down."""
    try:
        link.call(lambda client: client.ping())
    except link.RedisDownError:
        return True
    return link.is_down()


def _gauge() -> float:
    ((_labels, value),) = job_lock_degraded()
    return value


def _runs() -> bool:
    """Make a guarded run here; False: somebody else is at it just now."""
    return run_job(JOB).status == "ok"


@contextmanager
def _nobody_there() -> Iterator[str]:
    """Yield the address of a Redis that is not there: its port is taken and not listened on."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        yield f"redis://{LOOPBACK}:{taken.getsockname()[1]}/0"


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Yield what the link to Redis logs, as it does."""
    heard: list[str] = []
    logger = logging.getLogger(link.__name__)
    ear = _Ear(heard)
    logger.addHandler(ear)
    try:
        yield heard
    finally:
        logger.removeHandler(ear)


class _Ear(logging.Handler):
    """Keeps the messages of what is logged."""

    def __init__(self, heard: list[str]) -> None:
        """Keep messages in ``heard``."""
        super().__init__()
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self._heard.append(record.getMessage())
