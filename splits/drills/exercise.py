"""One performance of a drill: its timeline, its evidence, its patience."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django.conf import settings

from recovery import registry
from recovery.clock import db_now
from recovery.models import Job
from recovery.runner import SKIPPED, run_job
from splits.audit import Author
from splits.drills.counting import Count
from splits.drills.liveness import may_live

T = TypeVar("T")

LOOK_EVERY_S = 0.05
WORKERS_S = 15.0
"""So long workers are waited for, where some are at work, before this process does the job."""
RUN_EVERY_S = 0.5
PERIODS_ALIVE = 3


class DrillFailedError(Exception):
    """Something that was to be proven is not so."""


@dataclass(frozen=True)
class Moment:
    """What was done or found, and when."""

    at_s: float
    what: str
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the moment as ``drill --json`` prints it."""
        return {"at_s": self.at_s, "what": self.what, "ok": self.ok}

    def as_text(self) -> str:
        """Return the moment as people read it."""
        return f"{self.at_s:8.2f} s  {'ok    ' if self.ok else 'FAILED'}  {self.what}"


@dataclass
class Exercise:
    """A drill under way."""

    name: str
    code: str
    author: Author
    timeout_s: float
    say: Callable[[str], object]
    timeline: list[Moment] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Begin to wait."""
        self.deadline = self.begun + self.timeout_s

    @property
    def duration_s(self) -> float:
        """Return the seconds since it began."""
        return round(time.monotonic() - self.begun, 2)

    def allow(self, seconds: float) -> None:
        """Begin to wait anew, for so long."""
        self.timeout_s = seconds
        self.deadline = time.monotonic() + seconds

    def note(self, what: str, *, ok: bool = True) -> None:
        """Put what happened into the timeline."""
        self.timeline.append(Moment(self.duration_s, what, ok))
        self.say(self.timeline[-1].as_text())

    def prove(self, what: str, holds: object, **evidence: Any) -> None:
        """Note that something is as it should be, and what shows it; raise DrillFailedError."""
        self.evidence |= evidence
        self.note(what, ok=bool(holds))
        if not holds:
            raise DrillFailedError(f"not so: {what}")

    def wait(self, what: str, look: Callable[[], T | None], **evidence: Any) -> T:
        """Wait until ``look`` sees something, and return it; raise DrillFailedError."""
        while True:
            found = look()
            if found:
                self.prove(what, holds=True, **evidence)
                return found
            self._require_time(what)
            time.sleep(LOOK_EVERY_S)

    def work(self, job: str, what: str, look: Callable[[], T]) -> T:
        """Wait as ``wait`` does for what ``job`` is to do, and note who did it.

        Where no worker does it, this process makes guarded runs of the job.
        """
        run_at = time.monotonic() + (WORKERS_S if is_worked(job) else 0)
        by, reason = "", "no worker did it"
        while not (found := look()):
            self._require_time(f"{what} ({reason})")
            by = by or " (by the workers)"
            if time.monotonic() >= run_at:
                reason = _run(job) or reason
                by = f" ({job} ran in this process)"
                run_at = time.monotonic() + RUN_EVERY_S
            time.sleep(LOOK_EVERY_S)
        self.note(f"{what}{by}")
        return found

    def count(self, name: str, **labels: str) -> Count:
        """Begin to watch a counter."""
        return Count.begun(name, labels)

    def prove_counted(self, count: Count) -> None:
        """Prove that a counter has grown, as far as /metrics of this host shows it."""
        if not settings.METRICS_ENABLED:
            self.note(f"{count} is not counted: METRICS_ENABLED is false")
            return
        metrics = self.evidence.setdefault("metrics", {})
        metrics[str(count)] = grown = count.grown()
        self.prove(f"{count} grew by {grown:g}", grown > 0)

    def _require_time(self, what: str) -> None:
        if time.monotonic() >= self.deadline:
            self.note(what, ok=False)
            raise DrillFailedError(f"not within {self.timeout_s:g} s: {what}")


def is_worked(name: str) -> bool:
    """Tell whether the heart of job ``name`` beat lately, in another process that lives."""
    row = Job.objects.filter(name=name).first()
    if row is None or row.heartbeat_at is None or row.heartbeat_pid == os.getpid():
        return False
    age_s = (db_now() - row.heartbeat_at).total_seconds()
    lives = may_live(row.heartbeat_host, row.heartbeat_pid)
    return lives and age_s < PERIODS_ALIVE * registry.get(name).period_s


def _run(job: str) -> str:
    """Make a guarded run of ``job``; return why there was none, or why it failed."""
    outcome = run_job(job)
    if outcome.status == SKIPPED and outcome.reason == "paused":
        raise DrillFailedError(f"job {job} was paused meanwhile")
    return "" if outcome.status == "ok" else f"{job} {outcome.status}: {outcome.reason}"
