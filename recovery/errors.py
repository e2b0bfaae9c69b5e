"""Tell the database's errors apart: who is to blame, and what a second try can mend."""

import logging
import random
import time
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    ProgrammingError,
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
    3032,  # MySQL: taken off-line
    4031,  # MySQL's 2006 for who was silent for longer than wait_timeout
)
LOGIN_CODES = (1044, 1045, 1049, 1129, 1130)
NODE_CODES = (1047, 3100, 3101)  # Galera: not ready; Group Replication: a hook, certification
READ_ONLY_CODES = (1290, 1792, 1836)
FULL_CODES = (1021, 1026, 1030, 1037, 1038, 1041, 1114)
CLIENT_CODES = range(2000, 2100)
PASSING_CODES = frozenset(
    {DEADLOCK, LOCK_WAIT_TIMEOUT, NOWAIT_REFUSED, QUERY_INTERRUPTED, *STATEMENT_TIMEOUTS}
    | {*CONNECTION_CODES, *LOGIN_CODES, *NODE_CODES, *READ_ONLY_CODES, *FULL_CODES}
    | {*CLIENT_CODES}
)
SETUP_CODES = frozenset(
    {1036, 1142, 1143, 1227, 1370}  # a right that is missing
    | {1054, 1136, 1146, 1176, 1305, 1356, 1364, 1449}  # a table, column, index, routine, default
    | {1206}  # too small a table of locks
)
SQLITE_PASSING = (
    "database is locked",
    "database table is locked",
    "disk i/o error",
    "disk is full",
    "unable to open database file",
    "readonly database",
    "image is malformed",
    "file is not a database",
)
SQLITE_SETUP = ("no such", "has no column", "syntax error")
ATTEMPTS = 4
PAUSE_S = 0.05


def code_of(error: BaseException) -> int:
    """Return the server's or driver's error number; 0 where there is none."""
    first = error.args[0] if error.args else 0
    return first if isinstance(first, int) else 0


def name_of(error: BaseException) -> int | str:
    """Return what log records call ``error``: its number, else its class."""
    return code_of(error) or type(error).__name__


def is_row_locked(error: DatabaseError) -> bool:
    """Tell whether a row lock could not be had."""
    return code_of(error) in (LOCK_WAIT_TIMEOUT, NOWAIT_REFUSED) or "locked" in str(error)


def is_too_large(error: BaseException) -> bool:
    """Tell whether a statement was larger than the server takes (``max_allowed_packet``)."""
    return code_of(error) in PACKET_TOO_LARGE


def is_infrastructure(error: BaseException) -> bool:
    """Tell whether the database's state, not the row at hand, made this error.

    It passes, or the setup is broken: a missing table, column or right, which fails every row.
    """
    return is_passing(error) or _is_broken_setup(error)


def is_passing(error: BaseException) -> bool:
    """Tell whether a second try can mend what the database's state made.

    Deadlock, lock wait timeout, lost connection, refused login, read-only fail-over, a full disk.
    """
    if isinstance(error, InterfaceError):
        return True
    return _is_systemic(error, PASSING_CODES, SQLITE_PASSING)


def _is_broken_setup(error: BaseException) -> bool:
    if isinstance(error, NotSupportedError):
        return True
    # Without the server's code it is the driver's or Django's, about the values or our own code.
    if isinstance(error, ProgrammingError) and code_of(error):
        return True
    return _is_systemic(error, SETUP_CODES, SQLITE_SETUP)


def _is_systemic(error: BaseException, codes: Collection[int], texts: Iterable[str]) -> bool:
    if not isinstance(error, DatabaseError) or isinstance(error, IntegrityError | DataError):
        return False
    code = code_of(error)
    return code in codes if code else any(text in str(error).lower() for text in texts)


def with_retries(action: Callable[[], T], *, attempts: int = ATTEMPTS) -> T:
    """Return ``action()``, tried again after errors that may pass, with a growing, random pause.

    ``action`` holds the outermost transaction and is safe to repeat. Raises its last error.
    """
    for attempt in range(1, attempts):
        try:
            return action()
        except (DatabaseError, InterfaceError) as error:
            if not is_passing(error):
                raise
            logger.info(
                "database_retry",
                extra={"code": name_of(error), "attempt": attempt, "error": str(error)},
            )
            close_old_connections()
            time.sleep(PAUSE_S * 2**attempt * (0.5 + random.random()))
    return action()
