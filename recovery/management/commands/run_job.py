"""Make one guarded run of a job in this process."""

import signal
from typing import Any

from django.core.management.base import CommandParser

from recovery import registry, runner, stopping
from recovery.commands import DONE, LOCKED, WRONG, OperatorCommand, UsageError


class Command(OperatorCommand):
    """Make one guarded run of a job here and now."""

    help = "Make one guarded run of a job in this process; SIGTERM ends it after its batch."

    def add_options(self, parser: CommandParser) -> None:
        """Take the job's name."""
        parser.add_argument("name", help="the job's name, for one processLedgerOutbox")

    def run(self, **options: Any) -> int:
        """Run; 3 where somebody else holds the lock, 1 where it failed or is paused."""
        try:
            registry.get(options["name"])
        except registry.UnknownJobError as error:
            raise UsageError(str(error)) from error
        before = signal.signal(signal.SIGTERM, lambda *_: stopping.ask())
        try:
            outcome = runner.run_job(options["name"])
        finally:
            signal.signal(signal.SIGTERM, before)
        self.document = outcome.as_dict()
        self.say(f"{outcome.job}: {outcome.status} in {outcome.duration_s:.2f} s")
        for name, count in sorted(outcome.result.items()):
            self.say(f"  {name}: {count}")
        if outcome.reason:
            self.say(f"  {outcome.reason}")
        return status_of(outcome)


def status_of(outcome: runner.Outcome) -> int:
    """Return the exit status for ``outcome``."""
    if outcome.status == runner.SKIPPED:
        return LOCKED if outcome.reason == "locked" else WRONG
    return DONE if outcome.status == "ok" else WRONG
