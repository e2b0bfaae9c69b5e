"""The queue's rungs: the Redis list, and django-q2's table while Redis is out."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from django.db import DatabaseError, InterfaceError, close_old_connections
from django_q.brokers import Broker
from django_q.brokers.orm import ORM
from django_q.conf import Conf

from recovery import link

logger = logging.getLogger(__name__)

Task = tuple[Any, str]

QUEUE_LIMIT = 10_000
"""Of the Redis list: while no cluster pops, the oldest wake-ups go; ticks make up for them."""
LEFTOVERS_EVERY_S = 1.0
DATABASE_PAUSE_S = 1.0
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class TableRung(ORM):  # type: ignore[misc]
    """django-q2's queue table; a task is due at once, whatever its producer's clock says."""

    def enqueue(self, task: str) -> Any:
        """Add a row and return its key."""
        rows = self.get_connection()
        return rows.create(key=self.list_key, payload=task, lock=LONG_AGO).pk

    def take(self) -> list[Task]:
        """Return the tasks due, without waiting for one."""
        rows = self.get_connection().filter(key=self.list_key, lock__lt=datetime.now(UTC))  # noqa: TID251
        return [
            (row.pk, row.payload)
            for row in rows[: Conf.BULK]
            if self.get_connection().filter(pk=row.pk, lock=row.lock).update(lock=self.timeout(row))
        ]


class RungBroker(Broker):  # type: ignore[misc]
    """Pushes to and pops from the Redis list; steps down to the table, and drains it later.

    A queued task is a wake-up: losing one costs a period, having one twice costs nothing.
    """

    def __init__(self, list_key: str | None = None) -> None:
        """Make a broker for the cluster's list ``django_q:<list_key>:q``."""
        super().__init__(list_key)
        self._prepare()

    def __setstate__(self, state: Any) -> None:
        """Restore from a pickle."""
        super().__setstate__(state)
        self._prepare()

    def _prepare(self) -> None:
        self.redis_key = f"django_q:{self.list_key}:q"
        self._looked_for_leftovers = 0.0
        self._database_down = False

    @cached_property
    def table(self) -> TableRung:
        """Return the lower rung; made when it is needed, for making it takes a database."""
        return TableRung(self.list_key)

    def enqueue(self, task: str) -> Any:
        """Push ``task`` to Redis, or to the table where Redis cannot be had."""
        if link.usable():
            try:
                return link.call(lambda client: self._push(client, task))
            except link.RedisDownError:
                logger.debug("task_queued_in_table")
        return self.table.enqueue(task)

    def _push(self, client: Any, task: str) -> int:
        length = int(client.rpush(self.redis_key, task))
        if length > QUEUE_LIMIT:
            client.ltrim(self.redis_key, -QUEUE_LIMIT, -1)
        return length

    def dequeue(self) -> list[Task] | None:
        """Return the next tasks with their acknowledgement ids, or None after a short wait."""
        if not link.usable():
            return self._from_table() or self._wait(Conf.POLL)
        if time.monotonic() - self._looked_for_leftovers >= LEFTOVERS_EVERY_S:
            self._looked_for_leftovers = time.monotonic()
            left = self._from_table()
            if left:
                return left
        try:
            popped = link.call(self._pop, popping=True)
        except link.RedisDownError:
            return self._wait(Conf.POLL)  # what refuses at once must not be asked at once again
        return [(None, popped)] if popped else None

    def _pop(self, client: Any) -> str | None:
        popped = client.blpop([self.redis_key], link.POP_TIMEOUT_S)
        return popped[1].decode(errors="replace") if popped else None

    def _from_table(self) -> list[Task]:
        try:
            tasks = self.table.take()
        except (DatabaseError, InterfaceError) as error:
            if not self._database_down:
                logger.warning("queue_table_unreachable", extra={"error": str(error)})
            self._database_down = True
            close_old_connections()
            time.sleep(DATABASE_PAUSE_S)
            return []
        self._database_down = False
        return tasks

    @staticmethod
    def _wait(seconds: float) -> None:
        time.sleep(seconds)

    def acknowledge(self, task_id: Any) -> None:
        """Remove a finished task; one that cannot be removed comes again and does no harm."""
        if task_id is None:
            return
        self._tolerant(lambda: self.table.acknowledge(task_id))

    def delete(self, task_id: Any) -> None:
        """Remove a task."""
        self.acknowledge(task_id)

    def fail(self, task_id: Any) -> None:
        """Remove a task that cannot be read."""
        self.acknowledge(task_id)

    @staticmethod
    def _tolerant(action: Callable[[], Any]) -> None:
        try:
            action()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("task_not_acknowledged", extra={"error": str(error)})
            close_old_connections()

    def queue_size(self) -> int:
        """Return the tasks waiting on both rungs."""
        in_redis = 0
        if link.usable():
            try:
                in_redis = link.call(lambda client: client.llen(self.redis_key))
            except link.RedisDownError:
                logger.debug("queue_size_without_redis")
        return in_redis + int(self.table.queue_size())

    def lock_size(self) -> int:
        """Return the tasks taken from the table and not acknowledged."""
        return int(self.table.lock_size())

    def purge_queue(self) -> None:
        """Remove all waiting tasks."""
        self.table.purge_queue()
        if link.usable():
            link.call(lambda client: client.delete(self.redis_key))

    def delete_queue(self) -> None:
        """Remove all waiting tasks."""
        self.purge_queue()

    def ping(self) -> bool:
        """Tell that a cluster may start: one rung or the other will serve."""
        return True

    def info(self) -> str:
        """Name the rung in use."""
        return "Redis list" if link.configured() and not link.is_down() else "database table"

    def set_stat(self, key: str, value: str, timeout: int) -> None:
        """Publish the cluster's status where other processes can read it: in Redis."""
        if not link.is_down():  # twice a second: what it costs to try again is for others
            self._ask_redis(lambda client: client.set(key, value, ex=timeout))

    def get_stat(self, key: str) -> str | None:
        """Return the status of one cluster, if it published one."""
        return next(iter(self._stats([key])), None)

    def get_stats(self, pattern: str) -> list[str]:
        """Return the status of every cluster."""
        keys = self._ask_redis(lambda client: [*client.scan_iter(pattern)])
        return self._stats(keys) if keys else []

    def _stats(self, keys: list[Any]) -> list[str]:
        packs = self._ask_redis(lambda client: client.mget(keys)) or []
        return [pack.decode(errors="replace") for pack in packs if pack]

    @staticmethod
    def _ask_redis(action: Callable[[Any], Any]) -> Any:
        try:
            return link.call(action)
        except link.RedisDownError:
            return None
