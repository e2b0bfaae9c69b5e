"""Is there a heartbeat? The job's row and the Redis key, by the database's clock."""

import json
from datetime import datetime
from typing import Any

from django.db import connection

from recovery import link, probes, states
from recovery.heartbeats import HEARTBEAT_KEY, MIN_EXPIRY_S
from recovery.models import Job as JobRow
from recovery.registry import Job
from recovery.selfcheck.answers import Answer
from recovery.selfcheck.findings import Finding, Severity, moment

START = "Start manage.py qcluster, or look why it does not run this job: docs/runbook.md,"
START += " A job does not run."
LOST = "Look for redis_refused in the workers' log. After a FLUSHALL the next run writes it again:"
LOST += " manage.py run_job {job}."


def beats(job: Job) -> Answer:
    """Answer from the age of the heartbeat, as ``/readyz?jobs=1`` judges it."""
    facts = probes.job_facts(states.heartbeat_ages(connection))[job.name]
    row = JobRow.objects.filter(name=job.name).first()
    if row is not None and row.paused_at:
        since = f"paused since {moment(row.paused_at)}"
        return Answer(True, f"{since}: it need not beat, {_aged(row, facts)}")
    if row is None or facts["late"]:
        return Answer(False, probes.late_text(job.name, facts), START)
    evidence = f"{_aged(row, facts)}, at most {facts['limit_s']} s allowed"
    return _with_key(job, row, facts["limit_s"], evidence)


def _aged(row: JobRow, facts: dict[str, Any]) -> str:
    age_s = facts["heartbeat_age_s"]
    if row.heartbeat_at is None:
        return f"it never ran and was set up {age_s:.0f} s ago"
    return f"its row beat {age_s:.1f} s ago"


def _with_key(job: Job, row: JobRow, limit_s: int, evidence: str) -> Answer:
    """Judge the key beside a row that is fresh; the row counts where Redis is not to be had."""
    if row.heartbeat_at is None or not link.configured():
        return Answer(True, evidence)
    try:
        lag_s = _lag_s(job.name, row.heartbeat_at)
    except link.RedisDownError:
        return Answer(True, f"{evidence}; Redis is down, so the row alone was read")
    if lag_s is not None and lag_s <= limit_s:
        return Answer(True, f"{evidence}, and so did its key in Redis")
    return _unwritten(job, limit_s, evidence)


def _lag_s(name: str, beat_at: datetime) -> float | None:
    """Return by how much the key is older than the row's beat; None: there is none to be read."""
    text = link.call(lambda client: client.get(HEARTBEAT_KEY.format(name=name)))
    if not isinstance(text, bytes | str):
        return None
    try:
        at = datetime.fromisoformat(json.loads(text)["at"])
    except (KeyError, TypeError, ValueError):
        return None
    return (beat_at - at).total_seconds()


def _unwritten(job: Job, limit_s: int, evidence: str) -> Answer:
    """Answer where the row beats and the key does not.

    A flush, or an outage at the moment, is healed by the next run: within minutes that is no
    excuse. A job that runs once a day has its row, and a warning.
    """
    key, remedy = HEARTBEAT_KEY.format(name=job.name), LOST.format(job=job.name)
    text = f"{key} in Redis is missing or older than {limit_s} s"
    if limit_s <= MIN_EXPIRY_S:
        return Answer(False, f"{evidence}, but {text}", remedy)
    found = Finding(Severity.WARNING, "heartbeat-key-missing", f"{text}.", remedy)
    return Answer(True, evidence, findings=(found,))
