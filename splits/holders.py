"""Name who holds a row's lock, from the server's own tables; nothing is ever killed."""

import logging
import threading
import time
from contextvars import copy_context
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from django.db import DatabaseError, connection, transaction

from recovery.errors import is_row_locked
from splits.models import SplitOrder

logger = logging.getLogger(__name__)

WAIT_S = 2
POLL_S = 0.1

# Times of INNODB_TRX are those of the server's host, whatever the session's time zone.
# Who waits for the row too, ahead of us, blocks us as well: he comes last.
MARIADB = """
SELECT b.trx_mysql_thread_id, p.USER, p.HOST,
       TIMESTAMPDIFF(SECOND, b.trx_started,
                     CONVERT_TZ(NOW(), @@session.time_zone, 'SYSTEM')),
       p.COMMAND, COALESCE(b.trx_query, p.INFO)
  FROM information_schema.INNODB_LOCK_WAITS w
  JOIN information_schema.INNODB_TRX r ON r.trx_id = w.requesting_trx_id
  JOIN information_schema.INNODB_TRX b ON b.trx_id = w.blocking_trx_id
  LEFT JOIN information_schema.PROCESSLIST p ON p.ID = b.trx_mysql_thread_id
 WHERE r.trx_mysql_thread_id = %s
 ORDER BY b.trx_wait_started IS NOT NULL, b.trx_started LIMIT 1
"""
# By the ids of transactions, as sys.innodb_lock_waits does: the thread that a lock names is
# the one that made the lock's record, which for an implicit lock is whoever met it.
MYSQL = """
SELECT b.trx_mysql_thread_id, t.PROCESSLIST_USER, t.PROCESSLIST_HOST,
       TIMESTAMPDIFF(SECOND, b.trx_started,
                     CONVERT_TZ(NOW(), @@session.time_zone, 'SYSTEM')),
       t.PROCESSLIST_COMMAND, COALESCE(b.trx_query, t.PROCESSLIST_INFO)
  FROM performance_schema.data_lock_waits w
  JOIN information_schema.INNODB_TRX r ON r.trx_id = w.REQUESTING_ENGINE_TRANSACTION_ID
  JOIN information_schema.INNODB_TRX b ON b.trx_id = w.BLOCKING_ENGINE_TRANSACTION_ID
  LEFT JOIN performance_schema.threads t ON t.PROCESSLIST_ID = b.trx_mysql_thread_id
 WHERE r.trx_mysql_thread_id = %s
 ORDER BY b.trx_wait_started IS NOT NULL, b.trx_started LIMIT 1
"""
NO_PRIVILEGE = (
    "The server does not show its transactions to this user:"
    " GRANT PROCESS (and, on MySQL 8, SELECT ON performance_schema.*) to name the holder."
)
NOT_SHOWN = "The server did not show the holder within the time waited."
HOLDERS_CHANGE = "The holders change."
SQLITE = "Another process is writing: SQLite has one write lock for the whole database."


@dataclass(frozen=True)
class Holder:
    """The database connection whose open transaction holds a row."""

    connection_id: int | None = None
    user: str = ""
    host: str = ""
    age_s: int | None = None
    command: str = ""
    """What the server says the connection does: ``Sleep`` between two statements."""
    query: str = ""
    hint: str = ""
    """Why the holder is not known; empty where it is."""

    def as_dict(self) -> dict[str, Any]:
        """Return the holder for JSON and logs."""
        return asdict(self)


class _Waiter:
    """Waits for the row in a connection of its own: servers show holders only to waiters."""

    def __init__(self, order_id: int) -> None:
        self.order_id = order_id
        self.connection_id: int | None = None
        self.granted = False
        # In a copy of the context: what it logs names the job, the run and the order.
        work = partial(copy_context().run, self._wait)
        self.thread = threading.Thread(target=work, name="holder-probe", daemon=True)

    def _wait(self) -> None:
        try:
            self._wait_in_own_connection()
        except DatabaseError as error:
            if not is_row_locked(error):
                logger.warning("holder_probe_failed", extra={"error": str(error)})
        finally:
            connection.close()

    def _wait_in_own_connection(self) -> None:
        """Ask for the row in this thread's connection, which is closed afterwards."""
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = %s", [WAIT_S])
            cursor.execute("SELECT CONNECTION_ID()")
            (self.connection_id,) = cursor.fetchone()
        with transaction.atomic():
            SplitOrder.objects.select_for_update().filter(pk=self.order_id).first()
        self.granted = True


def find_holder(order_id: int) -> Holder | None:
    """Return who holds the order's row; None: nobody any more. Takes up to two seconds.

    Call it outside a transaction.
    """
    if connection.vendor != "mysql":
        return Holder(hint=SQLITE)
    waiter = _Waiter(order_id)
    waiter.thread.start()
    holder = _watch(waiter)
    waiter.thread.join(WAIT_S * 2)
    if waiter.granted and holder.connection_id is None:
        return None
    return holder


def _watch(waiter: _Waiter) -> Holder:
    """Look for the holder for as long as ``waiter`` waits, ever less often.

    MariaDB shows its lock waits as they were until nobody has looked for 0.1 s: of several
    who looked as often as that, none would see anything.
    """
    deadline, pause_s = time.monotonic() + WAIT_S, POLL_S
    while waiter.thread.is_alive() and (left_s := deadline - time.monotonic()) > 0:
        time.sleep(min(pause_s, left_s))
        pause_s *= 2
        if waiter.connection_id is None:
            continue
        try:
            holder = _look(waiter.connection_id)
        except DatabaseError as error:
            logger.info("holder_not_shown", extra={"error": str(error)})
            return Holder(hint=NO_PRIVILEGE)
        if holder:
            return holder
    return Holder(hint=NOT_SHOWN)


def _look(waiting_id: int) -> Holder | None:
    is_mariadb = getattr(connection, "mysql_is_mariadb", False)
    with connection.cursor() as cursor:
        cursor.execute(MARIADB if is_mariadb else MYSQL, [waiting_id])
        row = cursor.fetchone()
    if row is None:
        return None
    connection_id, user, host, age_s, command, query = row
    return Holder(
        connection_id=connection_id,
        user=user or "",
        host=host or "",
        age_s=age_s,
        command=command or "",
        query=(query or "")[:500],
    )
