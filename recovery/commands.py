"""What all operators' commands share: ``--json``, exit statuses, errors in one line."""

import json
import logging
import re
import sys
from argparse import SUPPRESS, ArgumentParser, _SubParsersAction
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

from django.conf import settings
from django.core.checks import run_checks
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError, ProgrammingError
from tqdm import tqdm

T = TypeVar("T")

logger = logging.getLogger(__name__)

DONE = 0
WRONG = 1
USAGE = 2
LOCKED = 3

ALIKE = 0.7
"""From this likeness on a word was probably meant."""


def _parsers_within(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """Yield the parsers of a command's subcommands that do not know ``--json`` yet."""
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for sub in dict.fromkeys(action.choices.values()):
                if "--json" not in sub._option_string_actions:
                    yield sub


class UsageError(CommandError):
    """The command was used wrongly: exit status 2."""

    def __init__(self, message: str) -> None:
        """Keep the message; it says what is accepted."""
        super().__init__(message, returncode=USAGE)


def _require_text(options: Mapping[str, Any]) -> None:
    """Raise UsageError where an argument is not UTF-8."""
    for name, value in options.items():
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise UsageError(f"{name} {text!a} is not UTF-8") from None


class OneLineParser(CommandParser):
    """Says in one line what is wrong with a command, with what was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2; where the command was called from code, raise CommandError."""
        if not self.called_from_command_line:
            super().error(message)
        meant = self._meant(message)
        hint = f"did you mean {meant}?" if meant else f"{self.prog} --help lists what it takes"
        self.exit(USAGE, f"{self.prog}: {message}; {hint}\n")

    def _meant(self, message: str) -> str:
        """Return the options, or the choices, most like those that were not understood."""
        _, _, wrong = message.partition("unrecognized arguments: ")
        known = [it for it in self._option_string_actions if it.startswith("--")]
        if not wrong:
            wrong = " ".join(re.findall(r"invalid choice: '([^']*)'", message))
            known = re.findall(r"[\w-]+", message.partition("choose from")[2])
        names = (it.partition("=")[0] for it in wrong.split())
        found = (next(iter(get_close_matches(it, known, 1, ALIKE)), "") for it in names)
        return ", ".join(filter(None, found))


class OperatorCommand(BaseCommand):
    """A command that prints text for people or, with ``--json``, one JSON document.

    Subclasses define ``add_options`` and ``run``; ``run`` prints text through ``say``,
    sets ``document`` and returns the exit status.
    """

    as_json = False
    document: Any = None

    def add_arguments(self, parser: CommandParser) -> None:
        """Add ``--json`` and the command's own options."""
        parser.__class__ = OneLineParser  # which Django lets nobody choose; subparsers follow it
        parser.add_argument(
            "--json", action="store_true", help="print one JSON document and nothing else"
        )
        self.add_options(parser)
        for sub in _parsers_within(parser):
            # Also behind the subcommand; said before it, it must not be forgotten there.
            sub.add_argument("--json", action="store_true", default=SUPPRESS, help=SUPPRESS)

    def add_options(self, parser: CommandParser) -> None:
        """Add the command's own options."""

    def check(self, *args: Any, **kwargs: Any) -> None:
        """Run the system checks; log what they find where logs are JSON.

        Raises SystemCheckError.
        """
        if not settings.LOGGING["as_json"]:
            return super().check(*args, **kwargs)
        found = [it for it in run_checks(*args, **kwargs) if not it.is_silenced()]
        for finding in found:
            facts = {"check": finding.id, "text": finding.msg, "hint": finding.hint}
            logger.log(finding.level, "check_finding", extra=facts)
        return super().check(*args, **kwargs) if any(it.is_serious() for it in found) else None

    def run(self, **options: Any) -> int:
        """Do the work and return the exit status."""
        raise NotImplementedError

    def handle(self, *_args: str, **options: Any) -> None:
        """Run, print, and leave with the exit status."""
        self.as_json = options["json"]
        _require_text(options)
        try:
            status = self.run(**options)
        except (OperationalError, InterfaceError, ProgrammingError) as error:
            raise CommandError(
                f"the database refused: {error}. Is it reachable (DATABASE_URL),"
                " and did you run manage.py migrate?"
            ) from error
        if self.as_json:
            self.print_document()
        if status:
            sys.exit(status)

    def print_document(self) -> None:
        """Print the JSON document."""
        self.stdout.write(json.dumps(self.document, ensure_ascii=False, default=str))

    def say(self, text: str) -> None:
        """Print a line for people; nothing under ``--json``."""
        if not self.as_json:
            self.stdout.write(text)

    def progress(self, items: Iterable[T], *, total: int | None = None, unit: str) -> Iterator[T]:
        """Yield ``items``, with a progress bar on standard error where that is a terminal."""
        bar = tqdm(
            items, total=total, unit=f" {unit}", file=sys.stderr, disable=not sys.stderr.isatty()
        )
        yield from bar
