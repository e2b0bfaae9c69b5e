"""The only list of what runs: jobs, found by autodiscovery in ``<app>/jobs.py``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.conf import settings

if TYPE_CHECKING:
    from recovery.runner import Run


@dataclass(frozen=True)
class Batch:
    """What one batch did; ``more`` asks for another one in the same run."""

    counts: Mapping[str, int] = field(default_factory=dict)
    more: bool = False


@dataclass(frozen=True)
class Job:
    """A registered job: one batch of work and the setting that holds its period."""

    name: str
    work: Callable[["Run"], Batch]
    period_setting: str
    summary: str

    @property
    def period_s(self) -> int:
        """Return the seconds between two ticks."""
        return int(getattr(settings, self.period_setting))


class UnknownJobError(LookupError):
    """No job of this name is registered."""

    def __init__(self, name: str) -> None:
        """Name the jobs there are."""
        super().__init__(f"no job is named {name!r}; there are: {', '.join(sorted(_jobs))}")


class DuplicateJobError(ValueError):
    """Two jobs share one name."""


_jobs: dict[str, Job] = {}


def job(
    name: str, *, period_setting: str
) -> Callable[[Callable[["Run"], Batch]], Callable[["Run"], Batch]]:
    """Register the decorated function as one batch of job ``name``.

    ``period_setting`` names the setting with the seconds between two ticks.
    The function is called again while its batch says ``more``, until the run is over.
    """

    def register(work: Callable[["Run"], Batch]) -> Callable[["Run"], Batch]:
        known = _jobs.get(name)
        if known and _place(known.work) != _place(work):  # the same place: a module reloaded
            raise DuplicateJobError(f"two jobs are named {name!r}")
        summary = (work.__doc__ or "").strip().partition("\n")[0]
        _jobs[name] = Job(name, work, period_setting, summary)
        return work

    return register


def _place(work: Callable[..., Batch]) -> tuple[str, str]:
    return work.__module__, work.__qualname__


def get(name: str) -> Job:
    """Return the job called ``name``; raise UnknownJobError."""
    try:
        return _jobs[name]
    except KeyError:
        raise UnknownJobError(name) from None


def all_jobs() -> list[Job]:
    """Return every registered job by name."""
    return [_jobs[name] for name in sorted(_jobs)]
