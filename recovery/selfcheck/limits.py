"""Is it limited? Each limit is a finite setting, and the code is seen to stop there."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from django.conf import settings

from recovery.clock import db_now
from recovery.leases import Lease
from recovery.registry import Batch, Job, Limit
from recovery.rehearsing import Rehearsal, UnprovenError, rehearsed
from recovery.runner import Run, work_until_over
from recovery.selfcheck.answers import Answer

ENDLESS = 3
"""A run that goes on for so many batches after its time goes on for ever."""
LEAST_BUDGET_S = 0.1


class _Quiet(Run):
    """A run that holds no lease and leaves no heartbeat."""

    def progressed(self) -> None:
        """Do nothing."""


def a_spent_budget_ends_a_run(rehearsal: Rehearsal) -> str:
    """Let a run that has work for ever begin with its time spent: it must end after one batch."""
    timeout_s = settings.Q_CLUSTER["timeout"]
    if not _is_finite(timeout_s, least=1):
        raise UnprovenError(
            f"JOB_TASK_TIMEOUT_SEC={timeout_s!r} ends no batch that hangs",
            remedy="Set JOB_TASK_TIMEOUT_SEC above JOB_TIME_BUDGET_SEC + JOB_LOCK_TTL_SEC.",
        )
    run = _Quiet(_endless(rehearsal.key), Lease(rehearsal.key, "", 0, db_now()))
    run.started = time.monotonic() - settings.JOB_TIME_BUDGET_SEC
    left = work_until_over(run)
    if not left or run.counts["batches"] != 1:
        raise UnprovenError(f"a run worked {run.counts['batches']} batches after its time was over")
    return (
        "a run whose time was over ended after its batch,"
        f" and one that hangs is ended by JOB_TASK_TIMEOUT_SEC={timeout_s:g}"
    )


def _endless(name: str) -> Job:
    def work(run: Run) -> Batch:
        return Batch({"batches": 1}, more=run.counts["batches"] + 1 < ENDLESS)

    return Job(name, work, "", "")


TIME_BUDGET = Limit("JOB_TIME_BUDGET_SEC", a_spent_budget_ends_a_run, least=LEAST_BUDGET_S)
"""The limit that every job has."""


@dataclass(frozen=True)
class Walk:
    """What was seen while a limit was walked to."""

    evidence: str
    audited: frozenset[str]
    """The actions that were audited on the way."""
    excused: frozenset[str]
    """Those that these settings never lead to."""


def is_limited(job: Job) -> Answer:
    """Answer from the settings and from walks of the code to each limit."""
    return Answer(True, "; ".join(map(_proven, _limits(job))))


def _limits(job: Job) -> Iterator[Limit]:
    if job.limit:
        yield job.limit
    yield TIME_BUDGET


def _proven(limit: Limit) -> str:
    value = getattr(settings, limit.setting, None)
    remedy = f"Set {limit.setting} to a number of at least {limit.least:g}."
    if not _is_finite(value, least=limit.least):
        raise UnprovenError(f"{limit.setting}={value!r} limits nothing", remedy=remedy)
    try:
        seen = walk(limit).evidence
    except UnprovenError as unproven:
        fallback = f"The code does not stop at {limit.setting}: compare it with the release."
        why = f"{limit.setting}={value:g}, but {unproven}"
        raise UnprovenError(why, remedy=unproven.remedy or fallback) from unproven
    return f"{limit.setting}={value:g}: {seen}"


def _is_finite(value: object, *, least: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= least


def walk(limit: Limit) -> Walk:
    """Walk the code to ``limit``; raise UnprovenError where it does not stop there."""
    with rehearsed() as rehearsal:
        evidence = limit.proof(rehearsal)
        audited = frozenset(rehearsal.audited())
    return Walk(evidence, audited, frozenset(rehearsal.excused))
