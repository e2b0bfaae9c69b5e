"""The rungs of ``lock:job:<name>``: a Redis key in front, the row in ``recovery_job`` always."""

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models.functions import Now

from recovery import link
from recovery.errors import is_row_locked
from recovery.models import Job

logger = logging.getLogger(__name__)

LOCK_KEY = "lock:job:{name}"
RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""
EXTEND = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end
return 0
"""
HOST = socket.gethostname()
FAMILY = secrets.token_hex(4)
"""Ends the tokens of this process and of those forked from it."""
KEY, ROW = "key", "row"
"""The rungs that may refuse: the Redis key, the job's row."""
PATIENCE_S = (0.02, 0.05, 0.1, 0.1)
"""Pauses between tries for the row: a renewal or a wake-up holds it for milliseconds."""


class LeaseError(Exception):
    """The lease of the job could not be had or kept."""


class PausedError(LeaseError):
    """The job is paused."""


class HeldError(LeaseError):
    """Somebody else holds the job's lock."""

    def __init__(self, owner: str = "", *, rung: str = ROW) -> None:
        """Name the holder where it is known; keep which rung refused."""
        super().__init__(f"held by {owner}" if owner else "held by another run")
        self.rung = rung


class LeaseLostError(LeaseError):
    """The lease expired and somebody else may hold it: what is uncommitted is rolled back."""


@dataclass
class Lease:
    """A held lease; its fence is larger than that of every earlier holder."""

    name: str
    token: str
    fence: int
    taken_at: datetime
    """When it was taken, by the database's clock."""
    _taken: float = field(default_factory=time.monotonic)

    def now(self) -> datetime:
        """Return the database's time, reckoned from when the lease was taken: no query."""
        return self.taken_at + timedelta(seconds=time.monotonic() - self._taken)

    def renew(self) -> None:
        """Renew the row; inside a batch's transaction, as its last statement.

        Raises LeaseLostError: the transaction must not commit.
        """
        if not Job.objects.filter(name=self.name).renew(
            fence=self.fence, ttl_s=settings.JOB_LOCK_TTL_SEC
        ):
            raise LeaseLostError(f"lease {self.fence} of {self.name} was lost")

    def extend(self) -> None:
        """Extend the Redis key if it is still ours; the row alone decides."""
        _try_script(EXTEND, self.name, self.token, str(_ttl_ms()))

    def drop_key(self) -> None:
        """Remove the Redis key if it is still ours."""
        _drop_key(self.name, self.token)


def _ttl_ms() -> int:
    return int(settings.JOB_LOCK_TTL_SEC * 1000)


def _try_script(script: str, name: str, *arguments: str) -> None:
    if not link.configured():
        return
    key = LOCK_KEY.format(name=name)
    try:
        link.call(lambda client: client.eval(script, 1, key, *arguments))
    except link.RedisDownError:
        logger.debug("lock_key_left_to_expire", extra={"job": name})


def acquire(name: str) -> Lease:
    """Take the lock of job ``name``: the Redis key where there is one, then the row.

    Raises PausedError or HeldError; database errors pass through: nothing runs unlocked.
    """
    with taking(name) as lease:
        return lease


@contextmanager
def taking(name: str) -> Iterator[Lease]:
    """Take the lock of job ``name``; what the block writes commits together with the lease.

    Raises PausedError or HeldError; database errors pass through: nothing runs unlocked.
    """
    token = f"{HOST}:{os.getpid()}:{secrets.token_hex(8)}{FAMILY}"
    _take_key(name, token)
    try:
        with transaction.atomic():
            yield _take_row(name, token)
    except BaseException:
        _drop_key(name, token)
        raise


def lock_row(name: str) -> Job:
    """Lock the row of job ``name``, made if it is missing; its ``now`` is the database's time.

    In a transaction, as its first statement. Raises HeldError where another transaction keeps
    the row: a holder that hangs in its transaction must not hang us.
    """
    nowait = connection.features.has_select_for_update_nowait
    rows = Job.objects.select_for_update(nowait=nowait).annotate(now=Now()).filter(name=name)
    for pause_s in (*PATIENCE_S, None):
        try:
            row = rows.first()
            if row is None:
                Job.objects.make([name])
                row = rows.get()
        except OperationalError as error:
            if not is_row_locked(error):
                raise
            if pause_s is None:
                raise HeldError from error
            time.sleep(pause_s)
        else:
            return row
    raise HeldError


def _take_key(name: str, token: str) -> None:
    if not link.configured():
        return
    key = LOCK_KEY.format(name=name)
    try:
        if link.call(lambda client: client.set(key, token, nx=True, px=_ttl_ms())):
            return
        holder = link.call(lambda client: client.get(key))
    except link.RedisDownError:
        return
    held_by = holder.decode(errors="replace") if isinstance(holder, bytes) else ""
    if not _was_given_up(name, held_by):
        raise HeldError(_owner(held_by), rung=KEY)


def _was_given_up(name: str, token: str) -> bool:
    """Tell whether the key is left from a call of this family that Redis worked too late.

    No lease stands behind it: it expires by itself, and until then the row alone decides.
    """
    return token.endswith(FAMILY) and not Job.objects.filter(name=name).leased().exists()


def _drop_key(name: str, token: str) -> None:
    # Also where Redis did not answer: it may have set the key all the same.
    _try_script(RELEASE, name, token)


def _owner(token: str) -> str:
    return token.rpartition(":")[0]


def _take_row(name: str, token: str) -> Lease:
    row = lock_row(name)
    if row.paused_at:
        raise PausedError(f"paused since {row.paused_at.isoformat()}")
    if not Job.objects.filter(name=name).acquire(
        owner=_owner(token), ttl_s=settings.JOB_LOCK_TTL_SEC
    ):
        raise HeldError(row.lease_owner)
    now: datetime = row.now  # type: ignore[attr-defined]  # annotated by lock_row
    return Lease(name, token, fence=row.fence + 1, taken_at=now)
