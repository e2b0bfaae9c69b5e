"""Examinations of the engine: clock, workers, schedules, leases, runs, pauses."""

import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import redis
from django.conf import settings
from django.db.models import Max
from django_q.models import Schedule

from recovery import link, registry, schedules
from recovery.clock import db_now
from recovery.models import Job, RunStatus
from recovery.probes import PERIODS_UNTIL_STALE
from recovery.selfcheck.findings import Finding, Severity, examination, moment, some
from recovery.wakeups import TASK

SILENT_S = 120
"""Without any heartbeat for so long, or for three of the shortest periods, no worker is alive."""
ERROR_SHOWN = 200
PROBE_MS = 1_000
MENDED = "A starting manage.py qcluster makes and mends schedules: start or restart one."


@examination("clock")
def clock() -> Iterator[Finding]:
    """Compare this host's clock with the database's."""
    begun, now = time.time(), db_now().timestamp()
    off_s = _beyond(now - begun, time.time() - begun)
    if abs(off_s) > schedules.MAX_SKEW_S:
        way = "behind" if off_s > 0 else "ahead of"
        yield Finding(
            Severity.ERROR,
            "clock-off",
            f"This host's clock is {abs(off_s):.1f} s {way} the database's: a qcluster here"
            f" leaves the ticks to others, from {schedules.MAX_SKEW_S:g} s on.",
            "Set both clocks by NTP (timedatectl, chronyc tracking).",
        )


def _beyond(ahead_s: float, took_s: float) -> float:
    """Return by how much the database's clock is off, less the time the question took."""
    return ahead_s - min(max(ahead_s, 0.0), took_s)


@examination("workers")
def workers() -> Iterator[Finding]:
    """Look for a sign of life of any worker on any host."""
    jobs = _not_paused()
    if not jobs:
        return
    newest = Job.objects.filter(name__in=[it.name for it in jobs]).aggregate(at=Max("heartbeat_at"))
    limit_s = max(SILENT_S, PERIODS_UNTIL_STALE * min(it.period_s for it in jobs))
    beat_at = newest["at"]
    if beat_at is None or db_now() - beat_at > timedelta(seconds=limit_s):
        since = "ever" if beat_at is None else f"since {moment(beat_at)}"
        yield Finding(
            Severity.ERROR,
            "workers-silent",
            f"No worker on any host has run a job {since}.",
            "Start manage.py qcluster on each worker host; where one runs, its log says why it"
            " does nothing (clock_off, tick_without_database).",
        )


def _not_paused() -> list[registry.Job]:
    paused = set(Job.objects.exclude(paused_at=None).values_list("name", flat=True))
    return [job for job in registry.all_jobs() if job.name not in paused]


@examination("schedules")
def ticks() -> Iterator[Finding]:
    """Compare django-q2's schedules with the registry."""
    now = db_now()
    found: defaultdict[str, list[Schedule]] = defaultdict(list)
    for row in Schedule.objects.filter(func=TASK).order_by("pk"):
        found[row.name].append(row)
    missing = [job.name for job in registry.all_jobs() if job.name not in found]
    if missing:
        text = f"No schedule, so no tick, starts {', '.join(missing)}."
        yield Finding(Severity.ERROR, "schedule-missing", text, MENDED)
    for job in registry.all_jobs():
        yield from _of_job(job, found.pop(job.name, []), now)
    strangers = [name for name in found if not registry.has(registry.base_of(name))]
    if strangers:
        yield Finding(
            Severity.WARNING,
            "schedule-unknown",
            f"Schedules start jobs that are not registered: {some(sorted(strangers))}.",
            MENDED,
        )


def _of_job(job: registry.Job, rows: list[Schedule], now: datetime) -> Iterator[Finding]:
    if len(rows) > 1:
        text = f"{job.name} has {len(rows)} schedules: each tick starts it as often."
        yield Finding(Severity.ERROR, "schedule-duplicate", text, MENDED)
    for row in rows:
        yield from _drifted(job, row)
        yield from _next_tick(job, row, now)


def _drifted(job: registry.Job, row: Schedule) -> Iterator[Finding]:
    wanted: dict[str, Any] = schedules.wanted(job)
    wrong = [
        f"{name} {getattr(row, name)!r}" for name in wanted if getattr(row, name) != wanted[name]
    ]
    if wrong:
        yield Finding(
            Severity.WARNING,
            "schedule-drifted",
            f"The schedule of {job.name} is not what the registry asks for"
            f" ({job.period_setting}={job.period_s}): {some(wrong)}.",
            MENDED,
        )


def _next_tick(job: registry.Job, row: Schedule, now: datetime) -> Iterator[Finding]:
    if row.next_run is None:
        yield Finding(Severity.ERROR, "schedule-stopped", f"{job.name} has no next tick.", MENDED)
        return
    ahead_s = (row.next_run - now).total_seconds()
    if ahead_s > job.period_s + schedules.MAX_SKEW_S:
        yield Finding(
            Severity.WARNING,
            "schedule-ahead",
            f"{job.name} ticks in {ahead_s:.0f} s, though it runs every {job.period_s} s:"
            " a host with a fast clock set it.",
            "A running manage.py qcluster pulls it back at once: start one, and set that clock.",
        )
    if -ahead_s > PERIODS_UNTIL_STALE * job.period_s:
        yield Finding(
            Severity.ERROR,
            "schedule-late",
            f"{job.name} should have ticked {-ahead_s:.0f} s ago, and runs every {job.period_s} s.",
            "Start manage.py qcluster; where one runs, its log says why it does not tick"
            " (clock_off, tick_without_database).",
        )


@examination("leases")
def stale_leases() -> Iterator[Finding]:
    """Look for holders that neither renewed their lease nor gave it back."""
    stale = Job.objects.filter(lease_owner__gt="").exclude(pk__in=Job.objects.leased())
    for row in stale:
        yield Finding(
            Severity.WARNING,
            "lease-stale",
            f"{row.lease_owner} took {row.name} and died, or hangs:"
            f" its lease expired at {moment(row.lease_expires_at)}.",
            "The next run takes it over: wait a period, or manage.py run_job"
            f" {row.name}. See whether that process still exists.",
        )


@examination("runs")
def failed_runs() -> Iterator[Finding]:
    """Look for jobs whose last run failed."""
    for row in Job.objects.filter(last_status=RunStatus.FAILED):
        yield Finding(
            Severity.WARNING,
            "run-failed",
            f"The last run of {row.name} failed: {' '.join(row.last_error.split())[:ERROR_SHOWN]}",
            "Look for run_failed in the workers' log: it has the stack.",
        )


@examination("pauses")
def pauses() -> Iterator[Finding]:
    """Say which jobs are paused."""
    for row in Job.objects.exclude(paused_at=None):
        yield Finding(
            Severity.INFO,
            "job-paused",
            f"{row.name} is paused since {moment(row.paused_at)}: ticks, wake-ups and run_job"
            " pass it by.",
            f"Once the reason is gone (audit record job-paused): manage.py jobs resume {row.name}.",
        )


@examination("Redis")
def refused_writes() -> Iterator[Finding]:
    """Write to Redis; whether it answers at all is a system check's to tell."""
    if not link.configured():
        return
    try:
        with link.connect(settings.REDIS_URL, socket_timeout=settings.REDIS_TIMEOUT_SEC) as client:
            client.set(link.PROBE_KEY, "1", px=PROBE_MS)
    except (redis.ConnectionError, redis.TimeoutError):
        return
    except redis.RedisError as error:
        yield Finding(
            Severity.WARNING,
            "redis-refuses-writes",
            f"Redis answers and takes no writes ({error}): jobs run degraded, locked by the"
            " database alone.",
            "See docs/runbook.md, Redis is down. Nothing is lost meanwhile.",
        )
