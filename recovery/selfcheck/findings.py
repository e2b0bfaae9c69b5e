"""What examinations find, and the list of examinations."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum

from django.db import close_old_connections

logger = logging.getLogger(__name__)

SOME = 3
"""So many of what was found are named; the others are counted."""


class Severity(StrEnum):
    """How bad a finding is: an error fails the command."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """What is not as it should be, and what to do about it."""

    severity: Severity
    id: str
    finding: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        """Return the finding as ``selfcheck --json`` prints it."""
        return {**asdict(self), "severity": self.severity.value}


Examination = Callable[[], Iterable[Finding]]

_examinations: dict[str, Examination] = {}


def examination(name: str) -> Callable[[Examination], Examination]:
    """Register the decorated function as the examination of ``name``: it yields findings."""

    def register(examine: Examination) -> Examination:
        _examinations[name] = examine
        return examine

    return register


def examine_all() -> list[Finding]:
    """Return what all examinations find, the worst first; one that fails is a finding itself."""
    return in_order(it for name in sorted(_examinations) for it in _examined(name))


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings, each once, the worst first."""
    ranks = list(Severity)
    return sorted(set(findings), key=lambda it: (ranks.index(it.severity), it.id, it.finding))


def _examined(name: str) -> list[Finding]:
    try:
        return list(_examinations[name]())
    except Exception as error:  # the other examinations go on
        logger.debug("examination_failed", exc_info=error, extra={"examination": name})
        close_old_connections()
        return [
            Finding(
                Severity.ERROR,
                "examination-failed",
                f"The examination of {name} failed: {shown(error)}.",
                "Mend what the error names; with LOG_LEVEL=DEBUG the log has its stack.",
            )
        ]


def shown(error: Exception) -> str:
    """Return the class and the text of ``error`` in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def moment(at: datetime | None) -> str:
    """Return a time as people read it, to the second."""
    return at.isoformat(timespec="seconds") if at else "never"


def some(names: Iterable[str], count: int | None = None) -> str:
    """Return the first few names and how many there are beyond; ``count``: of all."""
    known = list(names)
    more = (len(known) if count is None else count) - len(known[:SOME])
    return ", ".join(known[:SOME]) + (f" and {more} more" if more > 0 else "")
