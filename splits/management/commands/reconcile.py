"""Compare split orders, outbox, ledger, balances and lots."""

import sys
from functools import partial
from typing import Any

from django.core.management.base import CommandParser
from tqdm import tqdm

from recovery.audit import cli_actor
from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from recovery.spool import Spool
from splits.audit import Author
from splits.reconcile import Finding, Report, reconcile
from splits.reconcile.repairs import REPAIRS, NotFoundError, WrongTargetError, repair


class Command(OperatorCommand):
    """Say what disagrees, in one consistent snapshot, and how to repair it."""

    help = "Compare split orders, outbox, ledger, balances and lots; say what disagrees."

    def add_options(self, parser: CommandParser) -> None:
        """Take what to repair, and why."""
        parser.add_argument(
            "--repair",
            nargs=2,
            metavar=("FINDING", "TARGET"),
            help=f"repair one finding, on the record: {', '.join(REPAIRS)}",
        )
        parser.add_argument("--reason", default="", metavar="TEXT", help="why it is repaired so")

    def run(self, **options: Any) -> int:
        """Check everything; 1: something disagrees. Or repair one finding; 1: it is not so."""
        if options["repair"]:
            return self.repair(*options["repair"], reason=options["reason"].strip())
        if options["reason"]:
            raise UsageError("--reason goes with --repair")
        return self.compare()

    def repair(self, kind: str, target: str, *, reason: str) -> int:
        """Repair one finding."""
        if not reason:
            raise UsageError("--repair needs --reason: it is kept with the record")
        self.document = {"finding": kind, "target": target, "repaired": False}
        try:
            repair(kind, target, author=Author(cli_actor(), reason))
        except WrongTargetError as error:
            raise UsageError(str(error)) from error
        except NotFoundError as error:
            self.document["why"] = str(error)
            self.say(str(error))
            return WRONG
        self.document["repaired"] = True
        self.say(f"repaired: {kind} {target}")
        return DONE

    def compare(self) -> int:
        """Check everything."""
        with (
            Spool() as spool,
            tqdm(unit=" rows", file=sys.stderr, disable=not sys.stderr.isatty()) as bar,
        ):
            report = Report(on_finding=partial(self.note, spool), on_checked=bar.update)
            reconcile(report)
            bar.close()
            self.conclude(report, spool)
        return DONE if report.ok else WRONG

    def note(self, spool: Spool, finding: Finding) -> None:
        """Keep a finding for the document, or print it."""
        if self.as_json:
            spool.add(finding.as_dict())
            return
        with tqdm.external_write_mode(file=sys.stderr):
            self.say(finding.as_text())

    def conclude(self, report: Report, spool: Spool) -> None:
        """Print the document, or the counts."""
        if self.as_json:
            write = partial(self.stdout.write, ending="")
            spool.write_document(write, report.as_dict(), key="findings")
            return
        self.say(report.as_text())

    def print_document(self) -> None:
        """Print what was repaired; what was found is streamed."""
        if self.document is not None:
            super().print_document()
