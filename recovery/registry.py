"""The only list of what runs: jobs, found by autodiscovery in ``<app>/jobs.py``."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from django.conf import settings

if TYPE_CHECKING:
    from recovery.rehearsing import Rehearsal
    from recovery.runner import Run


@dataclass(frozen=True)
class Batch:
    """What one batch did; ``more`` asks for another one in the same run."""

    counts: Mapping[str, int] = field(default_factory=dict)
    more: bool = False


@dataclass(frozen=True)
class Limit:
    """What ends a job's tries, and how ``selfcheck`` sees that it does."""

    setting: str
    """The setting that holds it."""
    proof: Callable[["Rehearsal"], str]
    """Drives rows of its own to the limit through the code that works all others, and returns
    what it saw there; raises UnprovenError. What it writes is rolled back."""
    least: float = 1
    """The lowest value that limits anything."""


LANE_MARK = ":"


@dataclass(frozen=True)
class Job:
    """A registered job: one batch of work and the setting that holds its period.

    Runs of a job with several lanes may be at work at once: each lane has its own lock, lease,
    heartbeat, tick and row. The first has the job's name, the others are ``<job>:2`` and so on.
    """

    name: str
    work: Callable[["Run"], Batch]
    period_setting: str
    summary: str
    lanes_setting: str = ""
    """The setting that holds how many lanes there are; empty: one."""
    limit: Limit | None = None
    """What ends its tries; None: the time budget alone, which ends every run."""
    audit_actions: tuple[str, ...] = ()
    """What it is audited as. Where there is a ``limit``, its proof leads to each of them."""

    @property
    def period_s(self) -> int:
        """Return the seconds between two ticks."""
        return int(getattr(settings, self.period_setting))

    @property
    def base(self) -> str:
        """Return the job's canonical name, which its lanes share: the one in metrics."""
        return base_of(self.name)

    def lanes(self) -> Iterator["Job"]:
        """Yield this job's lanes, itself first."""
        yield self
        count = int(getattr(settings, self.lanes_setting)) if self.lanes_setting else 1
        for number in range(2, count + 1):
            yield replace(self, name=f"{self.name}{LANE_MARK}{number}")


def base_of(name: str) -> str:
    """Return the name of the job whose lane ``name`` is; of a job: its own."""
    return name.partition(LANE_MARK)[0]


class UnknownJobError(LookupError):
    """No job of this name is registered."""

    def __init__(self, name: str) -> None:
        """Name the jobs there are."""
        names = ", ".join(job.name for job in all_jobs())
        super().__init__(f"no job is named {name!r}; there are: {names}")


class DuplicateJobError(ValueError):
    """Two jobs share one name."""


_jobs: dict[str, Job] = {}


def job(
    name: str,
    *,
    period_setting: str,
    lanes_setting: str = "",
    limit: Limit | None = None,
    audit_actions: Iterable[str] = (),
) -> Callable[[Callable[["Run"], Batch]], Callable[["Run"], Batch]]:
    """Register the decorated function as one batch of job ``name``.

    ``period_setting`` names the setting with the seconds between two ticks, ``lanes_setting`` the
    one with how many runs may be at work at once, where more than one may. ``limit`` and
    ``audit_actions`` are what ``selfcheck`` holds the job to; without them it is held to its time
    budget, and to the record of its runs.
    The function is called again while its batch says ``more``, until the run is over.
    """

    def register(work: Callable[["Run"], Batch]) -> Callable[["Run"], Batch]:
        known = _jobs.get(name)
        if known and _place(known.work) != _place(work):  # the same place: a module reloaded
            raise DuplicateJobError(f"two jobs are named {name!r}")
        summary = (work.__doc__ or "").strip().partition("\n")[0]
        _jobs[name] = Job(
            name, work, period_setting, summary, lanes_setting, limit, tuple(audit_actions)
        )
        return work

    return register


def _place(work: Callable[..., Batch]) -> tuple[str, str]:
    return work.__module__, work.__qualname__


def get(name: str) -> Job:
    """Return the job, or the lane of one, called ``name``; raise UnknownJobError."""
    known = _jobs.get(base_of(name))
    for lane in known.lanes() if known else ():
        if lane.name == name:
            return lane
    raise UnknownJobError(name)


def has(name: str) -> bool:
    """Tell whether there is a job, or a lane of one, called ``name``."""
    try:
        return bool(get(name))
    except UnknownJobError:
        return False


def all_jobs() -> list[Job]:
    """Return every registered job with its lanes by name."""
    return [lane for name in sorted(_jobs) for lane in _jobs[name].lanes()]


def lane_behind(job: Job) -> Job | None:
    """Return the lane that comes after ``job``, itself a lane; None: it is the last."""
    names = [lane.name for lane in _jobs[job.base].lanes()]
    behind = names[names.index(job.name) + 1 :]
    return get(behind[0]) if behind else None
