"""Jobs, locks, threads and servers for tests of the engine."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from django.conf import settings
from django.db import connection, transaction

from recovery import link, registry
from recovery.models import Job, JobRun
from recovery.registry import Batch

DEADLINE_S = 120
NAME = "testJob"
FAILED = 99


def register(
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Any], Batch] = lambda _run: Batch(),
    *,
    name: str = NAME,
    period_setting: str = "JOB_OUTBOX_PERIOD_SEC",
) -> Job:
    """Register a job for one test; return its row."""
    job = registry.Job(name, work, period_setting, "test")
    monkeypatch.setitem(registry._jobs, name, job)
    return Job.objects.get_or_create(name=name)[0]


def client() -> redis.Redis:
    """Return a client of the test's Redis."""
    return link.connect(settings.REDIS_URL, socket_timeout=60)


def connects(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list to which is added whatever a socket of this process connects to from now."""
    addresses, connect = [], socket.socket.connect

    def connecting(self: socket.socket, address: Any) -> None:
        addresses.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connecting)
    return addresses


def in_thread(action: Callable[[], Any]) -> Any:
    """Return ``action()`` of a thread with a database connection of its own."""
    (result,) = in_threads(action)
    return result


def in_threads(*actions: Callable[[], Any]) -> list[Any]:
    """Return what the actions return, begun at the same moment in threads of their own."""
    results: list[Any] = [None] * len(actions)
    barrier = threading.Barrier(len(actions))

    def call(index: int, action: Callable[[], Any]) -> None:
        try:
            barrier.wait(DEADLINE_S)
            results[index] = action()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results[index] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=call, args=pair, daemon=True) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "it hangs"
    return results


def fork(action: Callable[[], Any]) -> int:
    """Fork a process that does ``action`` and no more; return its id."""
    child = os.fork()
    if child:
        return child
    status = FAILED
    try:
        status = int(action() or 0)
    finally:
        os._exit(status)  # whatever happens: a second pytest must not go on from here


def forked(action: Callable[[], Any]) -> int:
    """Return the exit status of a forked process that did ``action``."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(action), 0)[1])


@contextmanager
def row_held(name: str = NAME) -> Iterator[None]:
    """Let another connection hold the job's row in an open transaction."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                Job.objects.select_for_update().get(name=name)
                held.set()
                let_go.wait(DEADLINE_S)
        finally:
            connection.close()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert held.wait(DEADLINE_S)
    try:
        yield
    finally:
        let_go.set()
        thread.join(DEADLINE_S)


def row(name: str = NAME) -> Job:
    """Return the job's row as it is now."""
    return Job.objects.get(name=name)


def expire(name: str = NAME) -> None:
    """Let the job's lease expire, in the row and in Redis."""
    Job.objects.filter(name=name).update(lease_expires_at="2020-01-01T00:00:00Z")
    if settings.REDIS_URL:
        client().delete(f"lock:job:{name}")


def statuses(name: str = NAME) -> list[str]:
    """Return how the job's runs ended, oldest first."""
    runs = JobRun.objects.filter(job_id=name).order_by("id")
    return list(runs.values_list("status", flat=True))
