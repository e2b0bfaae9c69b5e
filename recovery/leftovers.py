"""What a process could not write while the database was away: written at its next run."""

import logging
from collections import deque
from collections.abc import Callable

from django.db import DatabaseError, InterfaceError

from recovery.errors import is_infrastructure, name_of

logger = logging.getLogger(__name__)

KEPT = 1_000
_left: deque[Callable[[], object]] = deque(maxlen=KEPT)


def leave(action: Callable[[], object]) -> None:
    """Keep ``action`` for ``settle``: it must be harmless late, and when it is never done.

    Nothing outlives the process: what it leaves then is found as after a crash.
    """
    _left.append(action)


def settle() -> None:
    """Do what was left, once the database answers; what its state refuses again stays."""
    for _ in range(len(_left)):
        action = _left.popleft()
        try:
            action()
        except (DatabaseError, InterfaceError) as error:
            if not is_infrastructure(error):
                raise
            facts = {"code": name_of(error), "error": str(error)}
            logger.info("leftover_stays", extra=facts)
            leave(action)


def forget() -> None:
    """Forget what was left."""
    _left.clear()
