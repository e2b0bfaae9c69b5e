"""Run the suite on SQLite and on MariaDB with Redis, side by side: most of it waits.

``python -m tests.both [ARGUMENT…]`` hands its arguments to both. What the one on MariaDB prints is
shown at once, that of the other one when both have ended.
"""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from recovery.orphans import die_with_parent

EMBEDDED = [sys.executable, "-m", "pytest"]
PRODUCTION = [sys.executable, "-m", "tests.servers", "--", *EMBEDDED]
INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Run both; 0 where both passed, 1 where one failed, 130 where somebody ended them."""
    with tempfile.TemporaryFile("w+", errors="replace") as kept:
        say("== production mode, MariaDB and Redis; embedded mode meanwhile ==")
        runs = [_start([*PRODUCTION, *arguments]), _start([*EMBEDDED, *arguments], kept)]
        try:
            statuses = [run.wait() for run in runs]
        except KeyboardInterrupt:  # they have had it too
            statuses = [run.wait() for run in runs]
            return INTERRUPTED
        finally:
            say("\n== embedded mode, SQLite ==")
            kept.seek(0)
            for line in kept:
                sys.stdout.write(line)
            sys.stdout.flush()
    return 1 if any(statuses) else 0


def _start(command: Sequence[str], output: IO[str] | None = None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
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
