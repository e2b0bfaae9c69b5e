"""``drill``: break something on purpose in a disposable order, and prove that it heals."""

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from django.core.management.base import CommandError, CommandParser

from recovery.audit import cli_actor
from recovery.clock import db_now
from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from splits.audit import Author
from splits.drills import cleaning, guards, registry
from splits.drills.exercise import Exercise
from splits.drills.names import new_code
from splits.drills.performance import Ending, perform
from splits.drills.registry import Case

TIMEOUT_S = 120.0
LONGEST_S = 3_600
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = "interrupted; `manage.py drill --clean` cleans up what is left"


class Command(OperatorCommand):
    """Perform a drill."""

    help = (
        "Break something on purpose in a disposable order; prove that it is detected, recovered"
        " and reported. Refused while real work is stuck."
    )

    def add_options(self, parser: CommandParser) -> None:
        """Add which drill, and how."""
        parser.add_argument("name", nargs="?", default="", metavar="NAME", help="see --list")
        parser.add_argument("--list", action="store_true", help="say which drills there are")
        parser.add_argument(
            "--clean", action="store_true", help="clean up what killed drills left behind"
        )
        parser.add_argument("--dry-run", action="store_true", help="say what it would do")
        parser.add_argument(
            "--timeout",
            default=f"{TIMEOUT_S:g}",
            metavar="SEC",
            help=f"give up after so long (default {TIMEOUT_S:g})",
        )
        parser.add_argument("--reason", default="", metavar="TEXT", help="for the audit records")

    def run(self, **options: Any) -> int:
        """List, clean or perform; 1: refused or failed."""
        if [bool(options["name"]), options["list"], options["clean"]].count(True) != 1:
            raise UsageError(f"drill NAME, --list or --clean; the drills are {_names()}")
        if options["list"]:
            return self.list_drills()
        if options["clean"]:
            return self.clean(options["reason"])
        case = _case(options["name"])
        exercise = self.exercise(case.name, options["reason"], _seconds(options["timeout"]))
        objections = list(guards.objections(case.jobs))
        if options["dry_run"]:
            return self.rehearse(case, objections)
        if objections:
            return self.refuse(exercise, objections)
        return self.perform(case, exercise)

    def list_drills(self) -> int:
        """Print a line a drill."""
        drills = [{"name": it.name, "summary": it.summary} for it in registry.all_cases()]
        self.document = {"drills": drills}
        for it in drills:
            self.say(f"{it['name']:<14}{it['summary']}")
        return DONE

    def exercise(self, name: str, reason: str, timeout_s: float, code: str = "") -> Exercise:
        """Return a drill that is about to begin, or the cleaning of the one called ``code``."""
        author = Author(cli_actor(), reason=reason or f"drill {name}")
        return Exercise(name, code or new_code(db_now()), author, timeout_s, self.say)

    def rehearse(self, case: Case, objections: list[str]) -> int:
        """Say what the drill would do, or why it would be refused."""
        self.document = {
            "drill": case.name, "dry_run": True, "would": list(case.steps), "refused": objections,
        }  # fmt: skip
        self.say(f"{case.name} would:")
        for step in case.steps:
            self.say(f"  {step}")
        for objection in objections:
            self.say(f"but it would be refused: {objection}")
        return WRONG if objections else DONE

    def refuse(self, exercise: Exercise, objections: list[str]) -> int:
        """Say why there is no drill now."""
        self.document = _document(exercise, Ending(error="")) | {
            "ok": False, "error": "refused", "refused": objections,
        }  # fmt: skip
        self.say(f"refused: {'; '.join(objections)}")
        return WRONG

    def perform(self, case: Case, exercise: Exercise) -> int:
        """Clean up after killed drills, then perform this one."""
        with _interruptible():
            self.clean_leftovers(exercise.author.reason)
            self.say(f"drill {case.name}: {exercise.code}")
            ending = perform(case, exercise)
        self.document = _document(exercise, ending)
        self.say(
            f"FAILED: {ending.why}" if ending.why else f"passed in {exercise.duration_s:.1f} s"
        )
        return WRONG if ending.why else DONE

    def clean(self, reason: str) -> int:
        """Clean up what killed drills left; 1: something could not be, or not yet."""
        with _interruptible():
            cleaned = self.clean_leftovers(reason)
        left = {code: rest for code, rest in cleaned.items() if rest}
        waits = {code: until.isoformat() for code, until in cleaning.under_way().items()}
        self.document = {
            "cleaned": [code for code in cleaned if code not in left],
            "left": left,
            "under_way": waits,
        }
        for code, until in waits.items():
            self.say(f"{code} may still be at work, until {until} at most: clean up after that")
        if not cleaned and not waits:
            self.say("nothing to clean up")
        return WRONG if left or waits else DONE

    def clean_leftovers(self, reason: str) -> dict[str, list[str]]:
        """Clean up after drills that are over; return what is left of each."""
        cleaned = {}
        for code in cleaning.leftovers():
            self.say(f"cleaning up after {code}, which did not")
            exercise = self.exercise("clean", reason, cleaning.CLEANING_S, code)
            cleaned[code] = cleaning.clean(exercise)
            for rest in cleaned[code]:
                self.say(f"  not cleaned up: {rest}")
        return cleaned

    def say(self, text: str) -> None:
        """Print a line for people at once; where nobody reads any more, go on without."""
        try:
            super().say(text)
            self.stdout.flush()
        except OSError:  # the reader of a pipe, or the terminal, is gone: clean up all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _names() -> str:
    return ", ".join(case.name for case in registry.all_cases())


def _case(name: str) -> Case:
    """Return the drill; raise UsageError where there is none, or nothing to drill."""
    case = registry.get(name)
    if case is None:
        raise UsageError(f"no drill is named {name!r}; the drills are {_names()}")
    unfit = case.unfit()
    if unfit:
        raise UsageError(f"drill {name}: {unfit}")
    return case


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_S:
        raise UsageError(f"--timeout {text!r}: give seconds, up to {LONGEST_S}")
    return seconds


def _document(exercise: Exercise, ending: Ending) -> dict[str, Any]:
    return {
        "drill": exercise.name,
        "code": exercise.code,
        "ok": not ending.why,
        "error": ending.why,
        "duration_s": exercise.duration_s,
        "timeline": [moment.as_dict() for moment in exercise.timeline],
        "evidence": exercise.evidence,
    }


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a lost terminal end the drill: cleaning up is not interrupted."""

    def interrupt(_signum: int, _frame: FrameType | None) -> NoReturn:
        for signum in before:
            signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {it: signal.signal(it, interrupt) for it in ENDS}
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError(INTERRUPTED) from None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
