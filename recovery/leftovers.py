"""What a process could not write while the database was away: written at its next run."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.models import QuerySet

from recovery.errors import is_infrastructure, name_of

logger = logging.getLogger(__name__)

KEPT = 1_000
_left: deque[tuple[Callable[[], object], QuerySet[Any] | None]] = deque(maxlen=KEPT)


def leave(action: Callable[[], object], *, rows: QuerySet[Any] | None = None) -> None:
    """Keep ``action`` for ``settle``: it must be harmless late, and when it is never done.

    ``rows`` are those it writes: while somebody has them locked it stays. Nothing outlives the
    process: what it leaves then is found as after a crash.
    """
    _left.append((action, rows))


def settle() -> None:
    """Do what was left, once the database answers; what its state refuses again stays.

    Waits for no row: it works within the run of a job that has nothing to do with it.
    """
    for _ in range(len(_left)):
        action, rows = _left.popleft()
        try:
            if rows is not None:
                _require_free(rows)
            action()
        except (DatabaseError, InterfaceError) as error:
            if not is_infrastructure(error):
                raise
            facts = {"code": name_of(error), "error": str(error)}
            logger.info("leftover_stays", extra=facts)
            leave(action, rows=rows)


def _require_free(rows: QuerySet[Any]) -> None:
    if connection.features.has_select_for_update_nowait:
        with transaction.atomic():
            list(rows.order_by("pk").values_list("pk").select_for_update(nowait=True))


def forget() -> None:
    """Forget what was left."""
    _left.clear()
