"""The link to Redis: one second at most a call, one warning an outage, a pause after a failure."""

import fcntl
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.sharedctypes import RawValue
from typing import TypeVar

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

T = TypeVar("T")

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2.0
POP_TIMEOUT_S = 1
POP_SOCKET_TIMEOUT_S = 3.0
REFUSALS_LOGGED_EVERY_S = 60.0
PROBE_KEY = "recovery:probe"
STATE_ERRORS = (
    "MISCONF",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "NOREPLICAS",
    "LOADING",
    "TRYAGAIN",
    "UNBLOCKED",  # said to who waits in a BLPOP when the server becomes a replica
)
"""Refusals that tell of the server's state; other plain ones are about one command or key."""

# Shared by all processes forked from this one, so that one of them finds an outage for all.
# Raw: a process killed in the middle of a write must not leave a lock behind.
_down_since = RawValue("d", 0.0)
_next_try = RawValue("d", 0.0)
_refused_at = RawValue("d", 0.0)


def _file_in_memory() -> int:
    """Return the descriptor of a file without a name: a container may have no writable folder."""
    with suppress(AttributeError, OSError):  # no Linux; not allowed
        return os.memfd_create("redis-turn")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Turn:
    """Held by one thread of one process of the family; what a killed process held is free."""

    def __init__(self) -> None:
        self._file = _file_in_memory()  # open as long as the process lives
        self._forked()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._thread = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Tell whether it was to be had at once; held until the block ends if it was."""
        if not self._thread.acquire(blocking=False):
            yield False
            return
        try:
            with self._of_process() as ours:
                yield ours
        finally:
            self._thread.release()

    @contextmanager
    def _of_process(self) -> Iterator[bool]:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


_turn = _Turn()


class RedisDownError(ConnectionError):
    """Redis is not configured, or did not answer a moment ago."""

    def __init__(self, error: str = "") -> None:
        """Say what the class says, or how a try failed."""
        super().__init__(error or type(self).__doc__)


def configured() -> bool:
    """Tell whether this installation has a Redis server."""
    return bool(settings.REDIS_URL)


def is_down() -> bool:
    """Tell whether Redis is configured and could not be had when last tried."""
    return configured() and _down_since.value > 0


def usable() -> bool:
    """Tell whether a call is worth trying: configured, and up or due for another try."""
    return configured() and (not is_down() or time.monotonic() >= _next_try.value)


@cache
def _client(url: str) -> redis.Redis:
    return connect(url, socket_timeout=settings.REDIS_TIMEOUT_SEC)


@cache
def _popping_client(url: str) -> redis.Redis:
    # A blocking pop waits on the server: its socket must be more patient than that.
    return connect(url, socket_timeout=POP_SOCKET_TIMEOUT_S)


def connect(url: str, *, socket_timeout: float) -> redis.Redis:
    """Return a client that fails fast instead of retrying ten times (redis-py's default)."""
    return redis.Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=socket_timeout,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SEC,
        health_check_interval=0,
    )


def call(action: Callable[[redis.Redis], T], *, popping: bool = False) -> T:
    """Return ``action(client)``; raise RedisDownError where Redis cannot be had.

    While Redis is down only one call every two seconds tries again, of all forked processes.
    """
    if not usable():
        raise RedisDownError
    client = (_popping_client if popping else _client)(settings.REDIS_URL)
    try:
        if is_down():
            _probe()
        return action(client)
    except redis.RedisError as error:
        if _is_refusal(error):
            _log_refusal(error)
        else:
            _went_down(error)
        raise RedisDownError(str(error)) from error


def _probe() -> None:
    """Find out whether Redis takes writes again: one that is full or read-only still reads."""
    with _turn.taken() as ours:
        if not ours or not usable():
            raise RedisDownError  # another one tries just now, or has just tried
        if not is_down():
            return
        # The turn ends before the try: who is stopped within it must not keep all others out.
        _next_try.value = time.monotonic() + RETRY_AFTER_S + _longest_try_s()
    try:
        _client(settings.REDIS_URL).set(PROBE_KEY, "1", px=1000)
    except redis.RedisError:
        _next_try.value = time.monotonic() + RETRY_AFTER_S
        raise
    if is_down():
        _came_back()


def _longest_try_s() -> float:
    return 2.0 * settings.REDIS_TIMEOUT_SEC  # to connect, and to be answered


def _is_refusal(error: redis.RedisError) -> bool:
    """Tell whether the server is well and refused this one command."""
    return type(error) is redis.ResponseError and not str(error).startswith(STATE_ERRORS)


def _log_refusal(error: redis.RedisError) -> None:
    now = time.monotonic()
    if not _refused_at.value or now - _refused_at.value >= REFUSALS_LOGGED_EVERY_S:
        _refused_at.value = now
        code = str(error).partition(" ")[0]
        logger.error("redis_refused", exc_info=error, extra={"code": code, "error": str(error)})


def _went_down(error: redis.RedisError) -> None:
    with _turn.taken() as ours:
        if not ours or _down_since.value:
            return  # another one says it, and when to try again
        _next_try.value = time.monotonic() + RETRY_AFTER_S
        _down_since.value = time.monotonic()
    logger.warning(
        "redis_down",
        extra={"error": str(error), "effect": "locks, wake-ups and queue go by the database"},
    )


def _came_back() -> None:
    outage_s = time.monotonic() - _down_since.value
    _down_since.value = 0.0
    _next_try.value = 0.0
    logger.info("redis_back", extra={"outage_s": round(outage_s, 1)})


def reset() -> None:
    """Forget what is known of the server (after a fork the clients reconnect by themselves)."""
    _down_since.value = _next_try.value = _refused_at.value = 0.0
