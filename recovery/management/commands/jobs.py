"""Show the state of every job; pause and resume them."""

from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django_q.models import Schedule

from recovery import pauses, registry, schedules
from recovery.audit import cli_actor
from recovery.clock import db_now
from recovery.commands import DONE, OperatorCommand, UsageError
from recovery.models import Job


class Command(OperatorCommand):
    """List the jobs, or pause or resume one."""

    help = "State of every job: heartbeat age, lease, next run, last error. Pause and resume."

    def add_options(self, parser: CommandParser) -> None:
        """Take what to do and to which job."""
        actions = ("list", "pause", "resume")
        parser.add_argument("action", nargs="?", default="list", choices=actions)
        parser.add_argument("name", nargs="?", help="the job to pause or resume")
        parser.add_argument("--reason", default="", help="kept in the audit record")

    def run(self, **options: Any) -> int:
        """List, pause or resume."""
        schedules.ensure_rows()
        if options["action"] == "list":
            if options["name"]:
                raise UsageError(f"jobs list takes no name: {options['name']!r} is too much")
            return self.list_jobs()
        return self.switch(options["action"], options["name"], options["reason"])

    def switch(self, action: str, name: str | None, reason: str) -> int:
        """Pause or resume ``name``; having done so before is no error."""
        if not name:
            names = ", ".join(it.name for it in registry.all_jobs())
            raise UsageError(f"jobs {action} NAME: say which job; there are: {names}")
        try:
            job = registry.get(name)
        except registry.UnknownJobError as error:
            raise UsageError(f"jobs {action} NAME: {error}") from error
        change = pauses.pause if action == "pause" else pauses.resume
        changed = change(job.name, actor=cli_actor(), reason=reason)
        self.document = {"job": job.name, "action": action, "changed": changed}
        done = {"pause": "paused", "resume": "running again"}[action]
        self.say(f"{job.name}: {done}" if changed else f"{job.name}: nothing to do, already so")
        return DONE

    def list_jobs(self) -> int:
        """Print one line a job."""
        now = db_now()
        next_runs = dict(Schedule.objects.values_list("name", "next_run"))
        rows = {row.name: row for row in Job.objects.all()}
        self.document = [
            facts(job, rows[job.name], now, next_runs.get(job.name)) for job in registry.all_jobs()
        ]
        for item in self.document:
            self.say(line(item))
        return DONE


def facts(job: registry.Job, row: Job, now: datetime, next_run: datetime | None) -> dict[str, Any]:
    """Return what is known of a job, times as ISO 8601, ages in seconds."""
    expires_at = row.lease_expires_at
    held_until = expires_at if expires_at and expires_at > now else None
    return {
        "job": job.name,
        "does": job.summary,
        "period_s": job.period_s,
        "paused_at": row.paused_at and row.paused_at.isoformat(),
        "heartbeat_age_s": age_s(row.heartbeat_at, now),
        "lease_owner": row.lease_owner if held_until else None,
        "lease_expires_at": held_until and held_until.isoformat(),
        "fence": row.fence,
        "next_run": next_run and next_run.isoformat(),
        "last_started_at": row.last_started_at and row.last_started_at.isoformat(),
        "last_finished_at": row.last_finished_at and row.last_finished_at.isoformat(),
        "last_status": row.last_status or None,
        "last_duration_s": row.last_duration_s,
        "last_error": row.last_error,
    }


def age_s(moment: datetime | None, now: datetime) -> float | None:
    """Return the seconds from ``moment`` to ``now``, or None."""
    return None if moment is None else round((now - moment).total_seconds(), 3)


def line(item: dict[str, Any]) -> str:
    """Return a job's facts as one line for people."""
    age = item["heartbeat_age_s"]
    parts = [
        f"{item['job']:<22}",
        f"every {item['period_s']} s".ljust(13),
        ("paused" if item["paused_at"] else item["last_status"] or "never ran").ljust(10),
        ("no heartbeat" if age is None else f"heartbeat {age:.0f} s ago").ljust(22),
        f"held by {item['lease_owner']}" if item["lease_owner"] else "",
        f"last error: {item['last_error']}" if item["last_error"] else "",
    ]
    return " ".join(part for part in parts if part).rstrip()
