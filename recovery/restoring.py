"""After a restore: fence off what was handed out since the backup, clear what outlived it.

The database jumped back in time; Redis, the queue and the processes of the hosts did not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from django.db import transaction
from django_q.brokers import get_broker
from redis import Redis

from recovery import audit, link, pauses, registry, schedules
from recovery.clock import db_now
from recovery.errors import with_retries
from recovery.heartbeats import HEARTBEAT_KEY
from recovery.leases import LOCK_KEY
from recovery.models import Job
from recovery.wakeups import WAKE_KEY

TARGET = "database"
DATABASE_RESTORED = "database-restored"
KEYS = {
    "locks": LOCK_KEY.format(name="*"),
    "wake_ups": WAKE_KEY.format(name="*"),
    "heartbeats": HEARTBEAT_KEY.format(name="*"),
}
KEYS_AT_ONCE = 1_000

Changes = dict[str, dict[str, int]]


def floor() -> int:
    """Return a number above every fence and epoch handed out so far, backup or not.

    The milliseconds since 1970, by the database's clock. Fences and epochs grow by one with each
    claim, and a claim is a transaction of its own: none has had as many as milliseconds went
    by. A constant jump would hand out the same numbers again once a backup is restored twice.
    """
    return int(db_now().timestamp() * 1000)


def paused_jobs() -> list[str]:
    """Return the jobs that are paused."""
    rows = Job.objects.exclude(paused_at=None).order_by("name")
    return list(rows.values_list("name", flat=True))


def running_jobs() -> list[str]:
    """Return the jobs that are not paused, or of which a lane is not."""
    known = {job.base for job in registry.all_jobs()}
    running = Job.objects.filter(paused_at=None).values_list("name", flat=True)
    return sorted(known & {registry.base_of(name) for name in running})


def pause_jobs(*, actor: str, reason: str) -> list[str]:
    """Pause every job, on the record; return those that were not paused before."""
    schedules.ensure_rows()
    names = running_jobs()
    return [name for name in names if pauses.pause(name, actor=actor, reason=reason)]


def fences() -> dict[str, int]:
    """Return the fence of each job."""
    return dict(Job.objects.order_by("name").values_list("name", "fence"))


def changes(before: dict[str, int], after: dict[str, int]) -> Changes:
    """Return what was and what is, by job."""
    return {name: {"before": before[name], "after": after[name]} for name in after}


def raise_fences(to: int, *, actor: str, reason: str, evidence: Mapping[str, int]) -> Changes:
    """Raise every job's fence to ``to`` at least and take its lease, on the record."""

    def attempt() -> Changes:
        with transaction.atomic():
            list(Job.objects.select_for_update().order_by("name"))
            before = fences()
            Job.objects.all().fence_off(to)
            after = fences()
            audit.record(
                actor=actor,
                action=DATABASE_RESTORED,
                target_type=TARGET,
                target_id="default",
                reason=reason,
                before={"fences": before},
                after={"fences": after},
                evidence={"raised_to": to, **evidence},
            )
        return changes(before, after)

    return with_retries(attempt)


@dataclass
class Survivors:
    """What outlived the restore, or came along with it: all of it is made anew by itself."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*KEYS, "queued"), 0))
    redis_error: str = ""
    """Why Redis was left as it is; empty: it was not."""


def survivors(*, clear: bool) -> Survivors:
    """Count the locks, wake-ups, heartbeats and queued tasks; with ``clear`` remove them.

    Only keys of this project's own names. Without Redis the queue's table is cleared all the same.
    """
    found = Survivors()
    try:
        if link.configured():
            for what, pattern in KEYS.items():
                found.counts[what] = _keys(pattern, clear=clear)
    except link.RedisDownError as error:
        found.redis_error = str(error) or "it does not answer"
    asked = Job.objects.exclude(wake_requested_at=None)
    found.counts["wake_ups"] += asked.count()
    if clear:
        asked.clear_wake()
    broker = get_broker()
    found.counts["queued"] = broker.queue_size() + broker.lock_size()
    try:
        if clear:
            broker.purge_queue()
    except link.RedisDownError as error:
        found.redis_error = str(error)
    if link.is_down() and not found.redis_error:
        found.redis_error = "it went away meanwhile"
    return found


def _keys(pattern: str, *, clear: bool) -> int:
    """Count the keys that fit; with ``clear`` remove them."""

    def walk(client: Redis) -> int:
        keys = set(client.scan_iter(match=pattern, count=KEYS_AT_ONCE))
        if keys and clear:
            client.delete(*keys)
        return len(keys)

    return link.call(walk)
