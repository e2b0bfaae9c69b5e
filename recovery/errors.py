"""Tell the database's errors apart: who is to blame, and what a second try can mend."""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    close_old_connections,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

# https://mariadb.com/kb/en/mariadb-error-codes/
DEADLOCK = 1213
LOCK_WAIT_TIMEOUT = 1205
NOWAIT_REFUSED = 3572  # MySQL; MariaDB answers 1205
QUERY_INTERRUPTED = 1317
PACKET_TOO_LARGE = (1153, 2020)  # the server, the client; the connection is gone in either case
STATEMENT_TIMEOUTS = (1969, 3024)  # MariaDB, MySQL
CONNECTION_CODES = (
    1040,
    1053,
    1077,
    1079,
    1152,
    1153,
    1158,
    1159,
    1160,
    1161,
    1184,
    1203,
    1226,
    1927,
)
LOGIN_CODES = (1044, 1045, 1049, 1129, 1130)
NODE_CODES = (1047,)  # a Galera node that is not ready
READ_ONLY_CODES = (1290, 1792, 1836)
FULL_CODES = (1021, 1026, 1030, 1037, 1038, 1041, 1114)
CLIENT_CODES = range(2000, 2100)
INFRASTRUCTURE_CODES = frozenset(
    {DEADLOCK, LOCK_WAIT_TIMEOUT, NOWAIT_REFUSED, QUERY_INTERRUPTED, *STATEMENT_TIMEOUTS}
    | {*CONNECTION_CODES, *LOGIN_CODES, *NODE_CODES, *READ_ONLY_CODES, *FULL_CODES}
    | {*CLIENT_CODES}
)
SQLITE_INFRASTRUCTURE = (
    "database is locked",
    "database table is locked",
    "disk i/o error",
    "disk is full",
    "unable to open database file",
    "readonly database",
    "image is malformed",
    "file is not a database",
)
ATTEMPTS = 4
PAUSE_S = 0.05


def code_of(error: BaseException) -> int:
    """Return the server's or driver's error number; 0 where there is none."""
    first = error.args[0] if error.args else 0
    return first if isinstance(first, int) else 0


def is_row_locked(error: DatabaseError) -> bool:
    """Tell whether a row lock could not be had."""
    return code_of(error) in (LOCK_WAIT_TIMEOUT, NOWAIT_REFUSED) or "locked" in str(error)


def is_too_large(error: BaseException) -> bool:
    """Tell whether a statement was larger than the server takes (``max_allowed_packet``)."""
    return code_of(error) in PACKET_TOO_LARGE


def is_infrastructure(error: BaseException) -> bool:
    """Tell whether the database's state, not the row at hand, made this error.

    Deadlock, lock wait timeout, lost connection, refused login, read-only fail-over, a full disk.
    """
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, DatabaseError):
        return False
    if isinstance(error, IntegrityError | DataError):
        return False
    code = code_of(error)
    if code:
        return code in INFRASTRUCTURE_CODES
    return any(part in str(error).lower() for part in SQLITE_INFRASTRUCTURE)


def with_retries(action: Callable[[], T], *, attempts: int = ATTEMPTS) -> T:
    """Return ``action()``, tried again after infrastructure errors with a growing, random pause.

    ``action`` holds the outermost transaction and is safe to repeat. Raises its last error.
    """
    for attempt in range(1, attempts):
        try:
            return action()
        except (DatabaseError, InterfaceError) as error:
            if not is_infrastructure(error):
                raise
            logger.info(
                "database_retry",
                extra={"code": code_of(error), "attempt": attempt, "error": str(error)},
            )
            close_old_connections()
            time.sleep(PAUSE_S * 2**attempt * (0.5 + random.random()))
    return action()
