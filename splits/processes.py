"""Child processes of a command: watched, logged, and ended with it."""

import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from splits.leash import GRACE_S, KILLED

SHOWN_LINES = 15
LOOK_EVERY_S = 0.1


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
        """Say how it ended and what to do; what it said last, unless it was killed."""
        status = child.process.returncode
        killed = status > KILLED or status < 0
        how = f"was killed by signal {abs(status) % KILLED}" if killed else "ended by itself"
        text = f"{child.name} {how}; start again, it carries on (log: {child.log})"
        if not killed:
            text = f"{child.name} ended by itself with status {status}; see {child.log}, which"
            text += f" ends with:\n{child.last_lines()}"
        super().__init__(text)


class Children:
    """Commands that are stopped when the block is left, and when this process dies."""

    def __init__(self, *, cwd: Path, environ: Mapping[str, str]) -> None:
        """Start nothing yet."""
        self._cwd = cwd
        self._environ = dict(environ)
        self._all: list[Child] = []
        self._passing: list[Child] = []

    def __enter__(self) -> Self:
        """Hand itself over."""
        return self

    def __exit__(self, *_exc_info: object) -> None:
        """Stop them all."""
        self.stop()

    def start(self, name: str, command: Sequence[str], *, log: Path) -> Child:
        """Start ``command`` with its output appended to ``log``."""
        self._all.append(self._started(name, command, log=log))
        return self._all[-1]

    def run(
        self, name: str, command: Sequence[str], *, log: Path, environ: Mapping[str, str]
    ) -> int:
        """Run ``command`` to its end, with ``environ`` besides; return its status.

        128 and the signal's number where it was killed. Raises ChildDiedError: another one ended.
        """
        child = self._started(name, command, log=log, environ=environ)
        self._passing.append(child)
        while child.process.poll() is None:
            self.require_alive()
            time.sleep(LOOK_EVERY_S)
        self._passing.remove(child)
        if child.process.stdin:
            child.process.stdin.close()
        return child.process.returncode

    def _started(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environ: Mapping[str, str] | None = None,
    ) -> Child:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "splits.leash", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env={**self._environ, **(environ or {})},
                start_new_session=True,  # Ctrl-C is for the parent, which stops them in order
            )
        return Child(name, process, log)

    def require_alive(self) -> None:
        """Raise ChildDiedError if one of those that are to stay ended."""
        for child in self._all:
            if child.process.poll() is not None:
                raise ChildDiedError(child)

    def stop(self) -> None:
        """Ask all of them to end, wait, and kill what does not."""
        everybody = [*self._passing, *self._all]
        for child in everybody:
            if child.process.stdin:
                child.process.stdin.close()
        deadline = time.monotonic() + GRACE_S + 5
        for child in everybody:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._all.clear()
        self._passing.clear()
