"""Run the suite on SQLite and on MariaDB with Redis, side by side: most of it waits.

``python -m tests.both [ARGUMENT…]`` hands its arguments to both. What the one on MariaDB prints is
shown at once, that of the other one when both have ended.

Where few tests of thousands failed, each is tried again, alone and three times, as CPython's
regrtest does: a test that fails once more is broken, and so is the run. One that passes each time
is unstable: the run passes, and its last lines name the test.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from recovery.orphans import die_with_parent
from tests.failures import FAILURES_FILE

PYTEST = [sys.executable, "-m", "pytest"]
INTERRUPTED = 130
SOME_FAILED = 1  # pytest's exit code; greater ones: it could not do its work
MOST_AGAIN = 3
TRIES = 3


@dataclass(frozen=True)
class Lane:
    """Where the suite runs, and the command that runs tests there."""

    name: str
    command: tuple[str, ...]


EMBEDDED = Lane("embedded mode, SQLite", (*PYTEST,))
PRODUCTION = Lane(
    "production mode, MariaDB and Redis", (sys.executable, "-m", "tests.servers", "--", *PYTEST)
)


def main(arguments: Sequence[str]) -> int:
    """Run both; 0 where both passed, 1 where one failed, 130 where somebody ended them."""
    try:
        with tempfile.TemporaryDirectory(prefix="failures-") as folder:
            files = {lane: Path(folder, str(n)) for n, lane in enumerate((PRODUCTION, EMBEDDED))}
            statuses = _side_by_side(files, arguments)
            failed = {lane: _lines(file) for lane, file in files.items()}
        return verdict(statuses, failed)
    except KeyboardInterrupt:
        return INTERRUPTED


def _side_by_side(files: Mapping[Lane, Path], arguments: Sequence[str]) -> dict[Lane, int]:
    with tempfile.TemporaryFile("w+", errors="replace") as kept:
        say(f"== {PRODUCTION.name}; {EMBEDDED.name} meanwhile ==")
        outputs = {PRODUCTION: None, EMBEDDED: kept}
        runs = {
            lane: _start([*lane.command, *arguments], outputs[lane], file)
            for lane, file in files.items()
        }
        try:
            return {lane: run.wait() for lane, run in runs.items()}
        except KeyboardInterrupt:  # they have had it too
            for run in runs.values():
                run.wait()
            raise
        finally:
            say(f"\n== {EMBEDDED.name} ==")
            kept.seek(0)
            for line in kept:
                sys.stdout.write(line)
            sys.stdout.flush()


def verdict(statuses: Mapping[Lane, int], failed: Mapping[Lane, Sequence[str]]) -> int:
    """Return the status of a run, where its lanes ended so and these tests failed there.

    :return: 0 where all passed, at the second try too; 1 where not
    """
    if not any(statuses.values()):
        return 0
    tests = [(lane, test) for lane, tests in failed.items() for test in tests]
    ended_well = all(status in (0, SOME_FAILED) for status in statuses.values())
    named = all(failed[lane] for lane, status in statuses.items() if status)
    if not ended_well or not named or len(tests) > MOST_AGAIN:
        return 1
    found = [(passes_again(lane, test), lane, test) for lane, test in tests]
    say("")
    for passed, lane, test in found:
        said = "UNSTABLE, failed once and passed alone" if passed else "BROKEN, failed alone too"
        say(f"== {said} ({lane.name}): {test}")
    return 0 if all(passed for passed, *_ in found) else 1


def passes_again(lane: Lane, test: str) -> bool:
    """Tell whether a test passes alone, each of three times."""
    for number in range(1, TRIES + 1):
        say(f"\n== again, alone, {number} of {TRIES} ({lane.name}) ==")
        if _start([*lane.command, test]).wait():
            return False
    return True


def _start(
    command: Sequence[str], output: IO[str] | None = None, failures: Path | None = None
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        env={**os.environ, FAILURES_FILE: str(failures or "")},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        preexec_fn=die_with_parent(signal.SIGTERM),
    )


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def say(text: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
