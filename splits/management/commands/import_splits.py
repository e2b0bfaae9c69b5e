"""Import split orders from a CSV file."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import CommandParser
from tqdm import tqdm

from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from recovery.spool import Spool
from splits.cutplans import HEADER, Fault
from splits.imports import Import, ImportStoppedError

INTERRUPTED = 130
GO_ON = "What is committed stays; run the same command again to go on."
HINT = "Is the database reachable (DATABASE_URL), and did you run manage.py migrate?"


class Command(OperatorCommand):
    """Import split orders; each order all-or-nothing, idempotent by its number."""

    help = "Import split orders from a CSV file (UTF-8), one row a line of an order: " + ",".join(
        HEADER
    )

    def add_options(self, parser: CommandParser) -> None:
        """Add the file and ``--finalize``."""
        parser.add_argument("file", metavar="FILE", help="the CSV file")
        parser.add_argument(
            "--finalize",
            action="store_true",
            help="submit the orders, also drafts that were imported before",
        )

    def run(self, **options: Any) -> int:
        """Import, report every refused row, and count."""
        with ExitStack() as stack:
            file, size = stack.enter_context(opened(options["file"]))
            self.spool = stack.enter_context(Spool())
            self.bar = stack.enter_context(
                tqdm(
                    total=size, unit="B", unit_scale=True, file=sys.stderr,
                    disable=not sys.stderr.isatty(),
                )
            )  # fmt: skip
            task = Import(
                finalize=options["finalize"],
                on_fault=self.report,
                on_progress=lambda offset: self.bar.update(offset - self.bar.n),
            )
            status = self.guarded(task, file)
            self.bar.close()
            self.conclude(task)
        return status

    def guarded(self, task: Import, file: BinaryIO) -> int:
        """Run the import; return the exit status."""
        try:
            task.run(file)
        except ImportStoppedError as error:
            self.report(Fault(0, "", f"{error}. {HINT} {GO_ON}"))
            return WRONG
        except KeyboardInterrupt:
            self.tell(f"Interrupted after {task.imported} orders. {GO_ON}")
            return INTERRUPTED
        return WRONG if task.faults else DONE

    def report(self, fault: Fault) -> None:
        """Keep a fault for the document, or print it at once."""
        if self.as_json:
            self.spool.add(fault.as_dict())
        elif fault.row:
            number = f" order {fault.order_number}" if fault.order_number else ""
            self.tell(f"row {fault.row}{number}: {fault.message}")
        else:
            self.tell(fault.message)

    def tell(self, text: str) -> None:
        """Print a line on standard error, above the progress bar."""
        with tqdm.external_write_mode(file=sys.stderr):
            self.stderr.write(text)

    def conclude(self, task: Import) -> None:
        """Print the document or the summary."""
        if self.as_json:
            counts = {"imported": task.imported, "skipped": task.skipped}
            self.spool.write_document(partial(self.stdout.write, ending=""), counts, key="errors")
            return
        submitted = f", {task.submitted} submitted" if task.finalize else ""
        self.say(
            f"{task.imported} orders imported, {task.skipped} skipped (known){submitted},"
            f" {task.faults} errors"
        )

    def print_document(self) -> None:
        """Print nothing more: the document is streamed."""


@contextmanager
def opened(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open the file ``name`` and yield it, seekable, with its size in bytes; raise UsageError."""
    with ExitStack() as stack:
        try:
            file: BinaryIO = stack.enter_context(Path(name).open("rb"))
            if not file.seekable():  # a pipe is kept first, as it is read twice
                kept = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(file, kept)
                file = kept
            size = file.seek(0, 2)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"cannot read {name}: {reason}") from error
        yield file, size
