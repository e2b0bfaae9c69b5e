"""Compare split orders, outbox, ledger, balances and lots."""

import sys
from functools import partial
from typing import Any

from tqdm import tqdm

from recovery.commands import DONE, WRONG, OperatorCommand
from recovery.spool import Spool
from splits.reconcile import Finding, Report, reconcile


class Command(OperatorCommand):
    """Say what disagrees, in one consistent snapshot, and how to repair it."""

    help = "Compare split orders, outbox, ledger, balances and lots; say what disagrees."

    def run(self, **_options: Any) -> int:
        """Check everything; 1: something disagrees."""
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
        """Print nothing more: the document is streamed."""
