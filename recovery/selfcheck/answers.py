"""Ask the five questions of the runbook of one job; each answer is yes or no, from evidence."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import close_old_connections

from recovery.registry import Job
from recovery.rehearsing import UnprovenError
from recovery.selfcheck.findings import Finding, shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """Yes or no, and what it rests on: of a no, why."""

    ok: bool
    evidence: str
    remedy: str = ""
    """What to do about a no."""
    findings: tuple[Finding, ...] = ()
    """What was seen on the way, though it does not change the answer."""

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as ``selfcheck --json`` prints it."""
        remedy = {} if self.ok else {"remedy": self.remedy}
        return {"ok": self.ok, "evidence": self.evidence, **remedy}


Question = Callable[[Job], Answer]


def answers(job: Job, questions: Mapping[str, Question]) -> dict[str, Answer]:
    """Return the answer to each question; one that cannot be answered is a no."""
    return {name: _asked(question, job) for name, question in questions.items()}


def _asked(question: Question, job: Job) -> Answer:
    try:
        return question(job)
    except UnprovenError as unproven:
        return Answer(False, str(unproven), unproven.remedy)
    except Exception as error:  # the other questions are asked all the same
        logger.debug("question_failed", exc_info=error, extra={"asked_of": job.name})
        close_old_connections()
        remedy = "Mend what the error names; with LOG_LEVEL=DEBUG the log has its stack."
        return Answer(False, f"it could not be asked: {shown(error)}", remedy)
