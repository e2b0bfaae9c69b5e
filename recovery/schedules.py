"""Keep django-q2's schedules in step with the registry, and tick by the database's clock."""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from croniter import croniter
from django.db import transaction
from django.db.models.functions import Now
from django_q.brokers import Broker
from django_q.models import Schedule
from django_q.scheduler import scheduler

from recovery import leases, registry
from recovery.clock import db_now
from recovery.models import Job as JobRow
from recovery.wakeups import TASK

logger = logging.getLogger(__name__)

MAX_SKEW_S = 1.0
LANE_GONE_S = 300
PERIODS_UNTIL_GONE = 3
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400


class Tick(NamedTuple):
    """When a schedule ticks next, and what the database's clock says just now."""

    pk: int
    name: str
    next_run: datetime
    now: datetime


def cron_of(period_s: int) -> str:
    """Return the cron line that ticks every ``period_s``; six fields, seconds last.

    The period divides a minute, an hour in minutes or a day in hours (ValueError otherwise).
    """
    if period_s < MINUTE_S and MINUTE_S % period_s == 0:
        return f"* * * * * */{period_s}"
    if period_s < HOUR_S and period_s % MINUTE_S == 0 and HOUR_S % period_s == 0:
        return f"*/{period_s // MINUTE_S} * * * * 0"
    if period_s < DAY_S and period_s % HOUR_S == 0 and DAY_S % period_s == 0:
        return f"0 */{period_s // HOUR_S} * * * 0"
    if period_s == DAY_S:
        return "0 0 * * * 0"
    raise ValueError(f"a tick every {period_s} s cannot be spaced evenly")


def next_slot(cron: str, after: datetime) -> datetime:
    """Return the first tick of ``cron`` after ``after``."""
    slot: datetime = croniter(cron, after).get_next(datetime)
    return slot


def ensure_rows() -> None:
    """Make the rows of jobs that have none."""
    known = set(JobRow.objects.values_list("name", flat=True))
    missing = [job.name for job in registry.all_jobs() if job.name not in known]
    if missing:
        JobRow.objects.make(missing)


def mend() -> None:
    """Make and mend one schedule a job; drop those of jobs that are no longer registered."""
    ensure_rows()
    for job in registry.all_jobs():
        if not _in_step(job):
            with suppress(leases.HeldError):  # another host mends it, or a later try does
                _mend_one(job)
    names = [job.name for job in registry.all_jobs()]
    foreign = Schedule.objects.filter(func=TASK).exclude(name__in=names)
    foreign.exclude(name__in=_at_work_elsewhere(list(foreign))).delete()


def _at_work_elsewhere(foreign: list[Schedule]) -> list[str]:
    """Return what this host has not and others have: lanes, jobs of newer code.

    While hosts are restarted one by one they must not take each other's ticks away.
    """
    if not foreign:
        return []
    now = db_now()
    rows = JobRow.objects.in_bulk([schedule.name for schedule in foreign])
    pairs = ((it, rows[it.name]) for it in foreign if it.name in rows)
    return [it.name for it, row in pairs if _is_alive(it, row, now)]


def _is_alive(schedule: Schedule, row: JobRow, now: datetime) -> bool:
    """Tell whether a job beats; one that this code does not know may still await its first run."""
    is_lane = registry.has(registry.base_of(row.name))
    sign = row.heartbeat_at or (None if is_lane else row.created_at)
    gone_s = max(LANE_GONE_S, PERIODS_UNTIL_GONE * _period_s(schedule.cron, now))
    return sign is not None and sign > now - timedelta(seconds=gone_s)


def _period_s(cron: str | None, now: datetime) -> float:
    """Return the seconds between two ticks of ``cron``; 0 where it is no cron line."""
    with suppress(ValueError, KeyError):
        first = next_slot(cron or "", now)
        return (next_slot(cron or "", first) - first).total_seconds()
    return 0.0


def wanted(job: registry.Job) -> dict[str, Any]:
    """Return what the schedule of ``job`` holds, but for its next tick."""
    return {
        "func": TASK,
        "args": repr((job.name,)),
        "kwargs": None,
        "hook": None,
        "schedule_type": Schedule.CRON,
        "cron": cron_of(job.period_s),
        "repeats": -1,
        "cluster": None,
    }


def _in_step(job: registry.Job) -> bool:
    rows = list(Schedule.objects.filter(name=job.name).values("next_run", *wanted(job)))
    return len(rows) == 1 and rows[0].pop("next_run") is not None and rows[0] == wanted(job)


def _mend_one(job: registry.Job) -> None:
    with transaction.atomic():
        # Schedule.name is not unique: two hosts starting at once must not make two rows.
        leases.lock_row(job.name)
        rows = list(Schedule.objects.filter(name=job.name).order_by("pk"))
        row = rows[0] if rows else Schedule(name=job.name, cron="")
        if row.cron != cron_of(job.period_s) or row.next_run is None:
            row.next_run = next_slot(cron_of(job.period_s), db_now())
        for field, value in wanted(job).items():
            setattr(row, field, value)
        if rows:
            row.save()
        else:
            Schedule.objects.bulk_create([row])  # save() would ask the host's clock for the tick
        Schedule.objects.filter(pk__in=[extra.pk for extra in rows[1:]]).delete()
    logger.info("schedule_mended", extra={"job": job.name, "cron": row.cron, "rows": len(rows)})


class Ticker:
    """Calls django-q2's scheduler when something is due, unless this host's clock is off."""

    def __init__(self, broker: Broker) -> None:
        """Tick with ``broker``."""
        self.broker = broker
        self.ticks = 0
        self._clock_off = False

    def tick(self) -> bool:
        """Start what is due once; False: this host's clock is off, the tick is left to others."""
        ticks = ticks_if_in_step()
        if ticks is None:
            self._warn_of_clock()
            return False
        self._clock_off = False
        if not ticks:
            return True
        now = ticks[0].now
        pull_back(now, ticks)
        if any(tick.next_run < now for tick in ticks):
            scheduler(broker=self.broker)
            self.ticks += 1
        return True

    def _warn_of_clock(self) -> None:
        if not self._clock_off:
            logger.warning("clock_off", extra={"max_skew_s": MAX_SKEW_S, "effect": "no ticks here"})
        self._clock_off = True


def ticks_if_in_step() -> list[Tick] | None:
    """Return the ticks, or None if this host's clock is more than a second off the database's.

    One statement, for it is made every second on every host.
    """
    rows = Schedule.objects.filter(func=TASK).exclude(next_run=None).annotate(now=Now())
    begun, host = time.monotonic(), time.time()  # a process that sleeps between them is not off
    ticks = [Tick(*row) for row in rows.values_list("pk", "name", "next_run", "now")]
    took_s = time.monotonic() - begun  # a clock that jumps meanwhile must not stretch it
    ahead_s = ticks[0].now.timestamp() - host if ticks else 0.0
    return ticks if is_in_step(ahead_s, took_s) else None


def is_in_step(ahead_s: float, took_s: float) -> bool:
    """Tell whether the database's clock is ours, of which it was asked that much earlier."""
    return -MAX_SKEW_S <= ahead_s <= took_s + MAX_SKEW_S


def pull_back(now: datetime, ticks: Iterable[Tick]) -> None:
    """Bring back ticks further ahead than one period: a host with a fast clock set them."""
    jobs = {job.name: job for job in registry.all_jobs()}
    for tick in ticks:
        job = jobs.get(tick.name)
        if job is None or tick.next_run <= now + timedelta(seconds=job.period_s + MAX_SKEW_S):
            continue
        slot = next_slot(cron_of(job.period_s), now)
        if Schedule.objects.filter(pk=tick.pk, next_run=tick.next_run).update(next_run=slot):
            logger.warning("tick_pulled_back", extra={"job": tick.name, "next_run": str(slot)})
