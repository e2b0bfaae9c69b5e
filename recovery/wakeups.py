"""Wake-ups: collapse into one flag a job, and none is lost."""

import logging
from functools import partial

from django.db import DatabaseError, InterfaceError, transaction
from django_q.tasks import async_task

from recovery import leases, link, registry
from recovery.models import Job

logger = logging.getLogger(__name__)

WAKE_KEY = "wake:job:{name}"
TASK = "recovery.runner.run_task"
MAX_EXPIRY_S = 60
"""How long a flag whose task was lost keeps others from being sent; at most one period."""


def wake_on_commit(name: str) -> None:
    """Wake job ``name`` once the surrounding transaction has committed."""
    transaction.on_commit(partial(wake, name), robust=True)


def wake(name: str) -> None:
    """Ask for a run of ``name`` at once; many calls before that run are one.

    Never raises: a wake-up that cannot be sent costs one period.
    """
    try:
        if _set_flag(name):
            _push(name)
    except (DatabaseError, InterfaceError) as error:
        _log_not_sent(name, error)


def enqueue(name: str) -> None:
    """Push one wake-up task, whether or not the flag is set; never raises."""
    try:
        _push(name)
    except (DatabaseError, InterfaceError) as error:
        _log_not_sent(name, error)


def _push(name: str) -> None:
    async_task(TASK, name, task_name=name)


def _log_not_sent(name: str, error: Exception) -> None:
    logger.warning("wake_up_not_sent", extra={"wakes": name, "error": str(error)})


def _set_flag(name: str) -> bool:
    if link.usable():
        key = WAKE_KEY.format(name=name)
        expiry_ms = min(registry.get(name).period_s, MAX_EXPIRY_S) * 1000
        try:
            return bool(link.call(lambda client: client.set(key, "1", nx=True, px=expiry_ms)))
        except link.RedisDownError:
            logger.debug("wake_up_by_column", extra={"wakes": name})
    return _set_column(name)


def _set_column(name: str) -> bool:
    # Read first: a write for every commit would make all producers queue for one row.
    if _asked_in_row(name):
        return False
    try:
        with transaction.atomic():
            leases.lock_row(name)
            return Job.objects.filter(name=name).ask_to_wake()
    except leases.HeldError:
        # Whoever keeps the row locked for so long keeps every run away too.
        logger.debug("wake_up_left_to_the_tick", extra={"wakes": name})
        return False


def clear(name: str) -> None:
    """Clear the flag; only the holder of the job's lock does, before each claim."""
    if link.usable():
        key = WAKE_KEY.format(name=name)
        try:
            link.call(lambda client: client.delete(key))
        except link.RedisDownError:
            logger.debug("wake_up_flag_left_to_expire", extra={"wakes": name})
    if _asked_in_row(name):
        Job.objects.filter(name=name).clear_wake()


def pending(name: str) -> bool:
    """Tell whether a wake-up of ``name`` is asked for, in Redis or in the column."""
    if link.usable():
        key = WAKE_KEY.format(name=name)
        try:
            if link.call(lambda client: client.exists(key)):
                return True
        except link.RedisDownError:
            logger.debug("wake_up_by_column", extra={"wakes": name})
    return _asked_in_row(name)


def _asked_in_row(name: str) -> bool:
    return Job.objects.filter(name=name).exclude(wake_requested_at=None).exists()
