"""Child processes of a command: watched, logged, and ended with it."""

import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from splits.leash import GRACE_S

SHOWN_LINES = 15


@dataclass(frozen=True)
class Child:
    """A running command on a leash."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def last_lines(self) -> str:
        """Return the end of the log."""
        with self.log.open(encoding="utf-8", errors="replace") as log:
            return "".join(deque(log, maxlen=SHOWN_LINES)).rstrip()


class ChildDiedError(Exception):
    """A process of the demo ended by itself."""

    def __init__(self, child: Child) -> None:
        """Name the process, its log and what it said last."""
        super().__init__(
            f"{child.name} ended by itself with status {child.process.returncode};"
            f" {child.log} ends with:\n{child.last_lines()}"
        )


class Children:
    """Commands that are stopped when the block is left, and when this process dies."""

    def __init__(self, *, cwd: Path, environ: Mapping[str, str]) -> None:
        """Start nothing yet."""
        self._cwd = cwd
        self._environ = dict(environ)
        self._all: list[Child] = []

    def __enter__(self) -> Self:
        """Hand itself over."""
        return self

    def __exit__(self, *_exc_info: object) -> None:
        """Stop them all."""
        self.stop()

    def start(self, name: str, command: Sequence[str], *, log: Path) -> None:
        """Start ``command`` with its output appended to ``log``."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "splits.leash", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env=self._environ,
                start_new_session=True,  # Ctrl-C is for the parent, which stops them in order
            )
        self._all.append(Child(name, process, log))

    def require_alive(self) -> None:
        """Raise ChildDiedError if one of them ended."""
        for child in self._all:
            if child.process.poll() is not None:
                raise ChildDiedError(child)

    def stop(self) -> None:
        """Ask all of them to end, wait, and kill what does not."""
        for child in self._all:
            if child.process.stdin:
                child.process.stdin.close()
        deadline = time.monotonic() + GRACE_S + 5
        for child in self._all:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._all.clear()
