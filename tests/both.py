"""Run the suite on SQLite and on MariaDB with Redis, side by side: most of it waits.

``python -m tests.both [ARGUMENT…]`` hands its arguments to all runs of pytest: two on each, which
share the files of tests. What the first one prints is shown at once, that of the others when all
have ended.

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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from recovery.orphans import die_with_parent
from tests.sharing import SHARED, failed_in, was_cut_short

PYTEST = (sys.executable, "-m", "pytest")
RUNS = 2
INTERRUPTED = 130
SOME_FAILED = 1  # pytest's exit code; greater ones: it could not do its work
MOST_AGAIN = 3
TRIES = 3


@dataclass(frozen=True)
class Lane:
    """Where the suite runs, and the command that runs tests there."""

    name: str
    command: tuple[str, ...]


EMBEDDED = Lane("embedded mode, SQLite", PYTEST)
PRODUCTION = Lane(
    "production mode, MariaDB and Redis", (sys.executable, "-m", "tests.servers", "--", *PYTEST)
)


@dataclass
class Run:
    """A run of pytest that shares the files of a lane with the lane's other runs."""

    lane: Lane
    number: int
    process: "subprocess.Popen[bytes]"
    kept: IO[str] | None
    """What it prints; None: that is shown at once."""

    def show(self) -> None:
        """Print what was kept."""
        if self.kept:
            say(f"\n== {self.lane.name}, {self.number} of {RUNS} ==")
            self.kept.seek(0)
            for line in self.kept:
                sys.stdout.write(line)
            sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Run both; 0 where both passed, 1 where one failed, 130 where somebody ended them."""
    try:
        with tempfile.TemporaryDirectory(prefix="shared-") as place:
            folders = {lane: Path(place, lane.name) for lane in (PRODUCTION, EMBEDDED)}
            statuses = _side_by_side(folders, arguments)
            failed = {lane: failed_in(folder) for lane, folder in folders.items()}
            if any(map(was_cut_short, folders.values())):  # -x: what else there is, nobody knows
                return 1
        return verdict(statuses, failed)
    except KeyboardInterrupt:
        return INTERRUPTED


def _side_by_side(folders: Mapping[Lane, Path], arguments: Sequence[str]) -> dict[Lane, list[int]]:
    say(f"== {PRODUCTION.name}, 1 of {RUNS}; the other one and {EMBEDDED.name} meanwhile ==")
    with ExitStack() as files:
        runs: list[Run] = []
        for lane, folder in folders.items():
            folder.mkdir()
            for number in range(1, RUNS + 1):
                kept = files.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
                output = kept if runs else None
                process = _start([*lane.command, *arguments], output, folder)
                runs.append(Run(lane, number, process, output))
        try:
            return {
                lane: [run.process.wait() for run in runs if run.lane == lane] for lane in folders
            }
        except KeyboardInterrupt:  # they have had it too
            for run in runs:
                run.process.wait()
            raise
        finally:
            for run in runs:
                run.show()


def verdict(statuses: Mapping[Lane, Sequence[int]], failed: Mapping[Lane, Sequence[str]]) -> int:
    """Return the status of it all, where the runs ended so and these tests failed there.

    :return: 0 where all passed, at the second try too; 1 where not
    """
    ended = {status for them in statuses.values() for status in them}
    if ended == {0}:
        return 0
    tests = [(lane, test) for lane, tests in failed.items() for test in tests]
    named = all(failed[lane] for lane, them in statuses.items() if any(them))
    if ended - {0, SOME_FAILED} or not named or len(tests) > MOST_AGAIN:
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
    command: Sequence[str], output: IO[str] | None = None, folder: Path | None = None
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        env={**os.environ, SHARED: str(folder or "")},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        preexec_fn=die_with_parent(signal.SIGTERM),
    )


def say(text: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
