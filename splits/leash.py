"""Run a command that does not outlive whoever holds the other end of standard input.

``python -m splits.leash COMMAND…`` ends COMMAND when standard input ends, which the kernel sees
to even where the holder was killed with -9. Imports nothing of Django: it starts at once.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

GRACE_S = 20.0
LOOK_EVERY_S = 0.1
KILLED = 128
"""Added to a signal's number where COMMAND was killed by it, as shells do."""


def run(command: Sequence[str]) -> int:
    """Run ``command`` until it ends, or until standard input ends or SIGTERM; return its status."""
    stop_asked = False

    def ask(_signum: int, _frame: object) -> None:
        nonlocal stop_asked
        stop_asked = True

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and not stop_asked and _is_held():
        pass
    return _end(child)


def _is_held() -> bool:
    ready, _, _ = select.select([0], [], [], LOOK_EVERY_S)
    return not ready or bool(os.read(0, 1))


def _end(child: "subprocess.Popen[bytes]") -> int:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    return status if status >= 0 else KILLED - status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
