"""The figures of the demo's page: few statements, none that grows with anything but the demo."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ledger.models import OutboxEntry, Posting
from recovery.leases import HOST
from recovery.models import Job, JobRun
from recovery.pids import may_live
from splits.demo.progress import Progress, progress

WORKERS_SEEN_WITHIN_S = 15
"""Older process ids may be somebody else's by now."""


@dataclass(frozen=True)
class JobFigures:
    """A job as the page shows it."""

    name: str
    beat_s: int | None
    status: str
    is_paused: bool


@dataclass(frozen=True)
class Figures:
    """What the page shows of the whole."""

    progress: Progress
    postings: int
    dead: int
    jobs: list[JobFigures]
    workers: list[int]


def read(now: datetime) -> Figures:
    """Return the figures at the database's time ``now``."""
    return Figures(
        progress=progress(),
        postings=Posting.objects.count(),
        dead=OutboxEntry.objects.dead().count(),
        jobs=[_job(row, now) for row in Job.objects.order_by("name")],
        workers=_workers(now),
    )


def _job(row: Job, now: datetime) -> JobFigures:
    beat_s = (now - row.heartbeat_at).total_seconds() if row.heartbeat_at else None
    return JobFigures(
        name=row.name,
        beat_s=None if beat_s is None else max(0, round(beat_s)),
        status=row.get_last_status_display(),
        is_paused=row.paused_at is not None,
    )


def _workers(now: datetime) -> list[int]:
    """Return the processes of this host that ran a job just now and live."""
    recent = JobRun.objects.filter(started_at__gt=now - timedelta(seconds=WORKERS_SEEN_WITHIN_S))
    pids = recent.filter(host=HOST).order_by().values_list("pid", flat=True).distinct()
    return sorted(pid for pid in pids if may_live(pid))
