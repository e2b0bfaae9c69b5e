"""Perform a drill: on the record, and cleaned up after whatever ended it."""

import os
from dataclasses import dataclass, field
from typing import Any

from django.db import connection, transaction

from ledger.outbox import LedgerError
from recovery import audit
from recovery.leases import HOST
from recovery.tallies import TalliesBusyError
from splits.drills import cleaning
from splits.drills.exercise import DrillFailedError, Exercise
from splits.drills.registry import Case
from splits.errors import SplitError
from splits.processes import ChildDiedError

EXPECTED_ERRORS = (SplitError, LedgerError, ChildDiedError, TalliesBusyError)


@dataclass
class Ending:
    """How a drill ended."""

    error: str = "it ended unexpectedly"
    """Empty: everything was proven."""
    left: list[str] = field(default_factory=list)
    """What could not be cleaned up."""

    @property
    def why(self) -> str:
        """Return what is wrong, in one line; empty: nothing."""
        parts = [self.error, f"not cleaned up: {'; '.join(self.left)}" if self.left else ""]
        return "; ".join(filter(None, parts))


def perform(case: Case, exercise: Exercise) -> Ending:
    """Play the drill and clean up; what goes wrong with it is in the ending."""
    ending = Ending()
    host = {"host": HOST, "pid": os.getpid(), "timeout_s": exercise.timeout_s}
    _record(exercise, cleaning.STARTED, {"drill": case.name, **host})
    try:
        case.play(exercise)
        ending.error = ""
    except KeyboardInterrupt:
        ending.error = "interrupted"
        exercise.note("interrupted", ok=False)
        _begin_anew()
    except DrillFailedError as error:  # the timeline has it already
        ending.error = str(error)
    except EXPECTED_ERRORS as error:
        ending.error = str(error)
        exercise.note(ending.error, ok=False)
    finally:
        exercise.allow(cleaning.CLEANING_S)
        ending.left = cleaning.clean(exercise)
        facts = {"ok": not ending.why, "error": ending.why, "duration_s": exercise.duration_s}
        _record(exercise, cleaning.FINISHED, {"drill": case.name, **facts})
    return ending


def _begin_anew() -> None:
    """Forget the connection: an interruption may have hit Django's book-keeping of it."""
    connection.close()
    connection.connect()


def _record(exercise: Exercise, action: str, evidence: dict[str, Any]) -> None:
    with transaction.atomic():
        audit.record(
            actor=exercise.author.actor,
            action=action,
            target_type=cleaning.TARGET,
            target_id=exercise.code,
            reason=exercise.author.reason,
            evidence=evidence,
        )
