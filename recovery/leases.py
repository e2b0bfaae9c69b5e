"""The rungs of ``lock:job:<name>``: a Redis key in front, the row in ``recovery_job`` always."""

import logging
import os
import secrets
import socket
from dataclasses import dataclass

from django.conf import settings
from django.db import OperationalError, connection, transaction

from recovery import link
from recovery.errors import is_row_locked
from recovery.faultpoints import faultpoint
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


class LeaseError(Exception):
    """The lease of the job could not be had or kept."""


class PausedError(LeaseError):
    """The job is paused."""


class HeldError(LeaseError):
    """Somebody else holds the job's lock."""

    def __init__(self, owner: str = "") -> None:
        """Name the holder where it is known."""
        super().__init__(f"held by {owner}" if owner else "held by another run")


class LeaseLostError(LeaseError):
    """The lease expired and somebody else may hold it: what is uncommitted is rolled back."""


@dataclass
class Lease:
    """A held lease; its fence is larger than that of every earlier holder."""

    name: str
    token: str
    fence: int
    in_redis: bool

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
        _try_script(RELEASE, self.name, self.token)


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
    token = f"{HOST}:{os.getpid()}:{secrets.token_hex(8)}"
    in_redis = _take_key(name, token)
    lease = Lease(name, token, fence=0, in_redis=in_redis)
    try:
        lease.fence = _take_row(name, token)
    except BaseException:
        if in_redis:
            lease.drop_key()
        raise
    faultpoint("lease.acquired")
    return lease


def _take_key(name: str, token: str) -> bool:
    if not link.configured():
        return False
    key = LOCK_KEY.format(name=name)
    try:
        taken = link.call(lambda client: client.set(key, token, nx=True, px=_ttl_ms()))
        if not taken:
            holder = link.call(lambda client: client.get(key))
            raise HeldError((holder or b"").decode(errors="replace").rpartition(":")[0])
    except link.RedisDownError:
        return False
    return True


def _take_row(name: str, token: str) -> int:
    owner = token.rpartition(":")[0]
    nowait = connection.features.has_select_for_update_nowait
    try:
        with transaction.atomic():
            # Without waiting: a holder that hangs in its transaction must not hang us.
            row = Job.objects.select_for_update(nowait=nowait).get(name=name)
            if row.paused_at:
                raise PausedError(f"paused since {row.paused_at.isoformat()}")
            if not Job.objects.filter(name=name).acquire(
                owner=owner, ttl_s=settings.JOB_LOCK_TTL_SEC
            ):
                raise HeldError(row.lease_owner)
            return row.fence + 1
    except OperationalError as error:
        if is_row_locked(error):
            raise HeldError from error
        raise
