"""One guarded run: pause, lock, heartbeat, batches, record, release."""

import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections, transaction

from recovery import heartbeats, leases, leftovers, metrics, registry, stopping, tracing, wakeups
from recovery.errors import name_of, with_retries
from recovery.faultpoints import faultpoint
from recovery.models import Job as JobRow
from recovery.models import JobRun, RunStatus

logger = logging.getLogger(__name__)

SKIPPED = "skipped"

_unknown: set[str] = set()
"""Jobs of newer code that this process was asked to run."""


@dataclass
class Run:
    """A run in progress, handed to the job's function for each batch."""

    job: registry.Job
    lease: leases.Lease
    run_id: uuid.UUID = field(default_factory=uuid.uuid4)
    deaths: int = 0
    """How many of the job's runs just before this one died in a row."""
    attempt: int = 1
    """The number of this run since the last one that neither failed nor died."""
    counts: Counter[str] = field(default_factory=Counter)
    batch_size: int = 0
    """How many rows the next batch takes; 0: the job has not said yet."""
    started: float = field(default_factory=time.monotonic)

    @property
    def actor(self) -> str:
        """Return the actor of this run's audit records."""
        return f"system:{self.job.base}"

    @property
    def duration_s(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self.started

    def over(self) -> bool:
        """Tell whether the time budget is spent or a stop was asked for."""
        return stopping.asked() or self.duration_s >= settings.JOB_TIME_BUDGET_SEC

    def renew_lease(self) -> None:
        """Renew the lease; call it as the last statement of each transaction of the job.

        Raises LeaseLostError, which rolls the transaction back.
        """
        self.lease.renew()

    def progressed(self) -> None:
        """Beat and extend the Redis key, after each committed piece of work."""
        self.lease.extend()
        self.beat(RunStatus.RUNNING)

    def beat(self, status: str, *, first: bool = False) -> None:
        """Write the heartbeat in Redis; the row has it already."""
        heartbeats.beat(
            self.job,
            at=self.lease.now(),
            run_id=self.run_id,
            status=status,
            duration_s=self.duration_s,
            fence=self.lease.fence,
            first=first,
        )


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt to run a job."""

    job: str
    status: str
    reason: str = ""
    duration_s: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    again: bool = False
    """Work is left, or a wake-up came in while the lock was held."""

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as ``run_job --json`` prints it."""
        return {
            "job": self.job,
            "status": self.status,
            "reason": self.reason,
            "duration_s": round(self.duration_s, 3),
            "result": self.result,
        }


def run_task(name: str) -> dict[str, Any]:
    """Run job ``name`` once, from the queue; what only other hosts have is left to them.

    That is a lane, or, while hosts are upgraded one by one, a job of newer code.
    """
    if registry.has(name):
        return run_job(name).as_dict()
    if registry.has(registry.base_of(name)):
        return _skipped(registry.get(registry.base_of(name)), "no_lane", name).as_dict()
    if name not in _unknown:  # once a process: it comes with each tick
        logger.warning("job_left_to_newer_code", extra={"job": name})
    _unknown.add(name)
    return Outcome(name, SKIPPED, reason="unknown").as_dict()


def run_job(name: str) -> Outcome:
    """Make one guarded run of job ``name`` in this process; work left is queued at once.

    Never raises for what happens in the run: the outcome says it.
    Raises UnknownJobError.
    """
    job = registry.get(name)
    close_old_connections()
    try:
        run = with_retries(lambda: begin(job))
    except leases.PausedError as error:
        return _skipped(job, "paused", str(error))
    except leases.HeldError as error:
        return _skipped(job, "locked", str(error))
    except (DatabaseError, InterfaceError) as error:
        facts = {**_named(job), "code": name_of(error), "error": str(error)}
        logger.warning("run_skipped_no_lock", extra=facts)
        return _skipped(job, "no_lock", str(error))
    facts = {**_named(job), "run_id": str(run.run_id), "attempt": run.attempt}
    traced = tracing.span(f"job {job.base}", **facts)
    with structlog.contextvars.bound_contextvars(**facts), traced as span:
        outcome = _guarded(run)
        _trace(run, outcome, span)
    if outcome.again:
        # Also when a stop was asked for: another host takes it, or this one after its start.
        wakeups.enqueue(name)
    return outcome


def _trace(run: Run, outcome: Outcome, span: Any) -> None:
    """Say in the run's span what it did; one that did nothing is left out, every few seconds."""
    span.note(**{f"count.{name}": count for name, count in run.counts.items()})
    if outcome.status == RunStatus.FAILED:
        span.fail(outcome.reason.partition(":")[0])
    elif not run.counts:
        span.drop()


def _named(job: registry.Job) -> dict[str, str]:
    """Return what log records call the job: its name, and its lane where that is another one."""
    return {"job": job.base} | ({"lane": job.name} if job.name != job.base else {})


def _skipped(job: registry.Job, reason: str, detail: str) -> Outcome:
    metrics.job_skipped(job.base, reason)
    logger.debug("run_skipped", extra={**_named(job), "reason": reason, "detail": detail})
    return Outcome(job.name, SKIPPED, reason=detail if reason == "no_lock" else reason)


def _guarded(run: Run) -> Outcome:
    status, error, more = RunStatus.OK, "", False
    try:
        run.beat(RunStatus.RUNNING, first=True)
        faultpoint("lease.acquired")
        leftovers.settle()
        more = work_until_over(run)
    except leases.LeaseLostError as lost:
        status, error = RunStatus.FAILED, str(lost)
        logger.warning("lease_lost", extra={"fence": run.lease.fence})
    except Exception as failure:  # noqa: BLE001 - a failing job never kills its worker
        status, error = RunStatus.FAILED, f"{type(failure).__name__}: {failure}"
        _log_failure(run, failure)
    except BaseException as stop:
        # django-q2's time-out is a SystemExit raised wherever the code happens to be.
        _log_failure(run, stop)
        _close(run, RunStatus.FAILED, f"{type(stop).__name__}: {stop}")
        raise
    _close(run, status, error)
    return Outcome(
        run.job.name,
        status.value,
        reason=error,
        duration_s=run.duration_s,
        result=dict(run.counts),
        again=more or _woken(run.job.name),
    )


def _log_failure(run: Run, failure: BaseException) -> None:
    logger.error(
        "run_failed",
        exc_info=failure,
        extra={
            "code": name_of(failure),
            "attempt": run.attempt,
            "fence": run.lease.fence,
        },
    )


def begin(job: registry.Job) -> Run:
    """Take the lock of ``job`` for a run, and write that it begins; raise as ``leases.taking``."""
    with leases.taking(job.name) as lease:
        return _open(job, lease)


def _open(job: registry.Job, lease: leases.Lease) -> Run:
    """Write that the run begins, in the transaction that takes the lease."""
    buried = JobRun.objects.died_before(job.name, lease.fence).bury()
    transaction.on_commit(partial(metrics.jobs_died, job.base, buried), robust=True)
    endings = JobRun.objects.latest_endings(job.name)
    run = Run(
        job,
        lease,
        deaths=_in_a_row(endings, {RunStatus.DIED}),
        attempt=1 + _in_a_row(endings, {RunStatus.DIED, RunStatus.FAILED}),
    )
    pid = os.getpid()
    JobRun.objects.create(
        run_id=run.run_id, job_id=job.name, fence=lease.fence, host=leases.HOST, pid=pid
    )
    JobRow.objects.filter(name=job.name).beat(
        fence=lease.fence, host=leases.HOST, pid=pid, run_id=run.run_id
    )
    return run


def _in_a_row(endings: Iterable[str], statuses: Set[str]) -> int:
    return sum(1 for _ in takewhile(statuses.__contains__, endings))


def work_until_over(run: Run) -> bool:
    """Work batches until nothing is due or the run is over; tell whether work is left."""
    while True:
        wakeups.clear(run.job.name)
        batch = run.job.work(run)
        run.counts.update(batch.counts)
        if not batch.more:
            return False
        run.progressed()
        if run.over():
            return True


def _close(run: Run, status: RunStatus, error: str) -> None:
    if _is_recorded(run, status, error):
        metrics.job_ran(run.job.base, duration_s=run.duration_s, failed=status is RunStatus.FAILED)
    run.lease.drop_key()
    _log_end(run, status)


def _is_recorded(run: Run, status: RunStatus, error: str) -> bool:
    """Record the end of the run; False: the next run finds it dead, or has, and counts it so."""
    try:
        return with_retries(lambda: _record(run, status, error), attempts=2)
    except (DatabaseError, InterfaceError) as failure:
        logger.warning("run_not_recorded", extra={"error": str(failure)})
        return False


def _log_end(run: Run, status: RunStatus) -> None:
    facts = {"status": status.value, "duration_s": round(run.duration_s, 3)}
    if run.counts or status is RunStatus.FAILED:
        logger.info("run_finished", extra={**facts, "counts": dict(run.counts)})
    else:
        logger.debug("run_idle", extra=facts)  # every few seconds, all day


def _record(run: Run, status: RunStatus, error: str) -> bool:
    with transaction.atomic():
        ended = JobRun.objects.filter(run_id=run.run_id).finish(
            status=status, counts=dict(run.counts), error=error
        )
        kept = JobRow.objects.filter(name=run.job.name).release(
            fence=run.lease.fence, status=status, error=error, duration_s=run.duration_s
        )
    if kept:  # a lease that was lost: the heartbeat is its new holder's
        run.beat(status)
    return ended


def _woken(name: str) -> bool:
    try:
        return wakeups.pending(name)
    except (DatabaseError, InterfaceError):
        return False
