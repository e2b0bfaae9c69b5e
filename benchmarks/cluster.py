"""A ``qcluster`` that runs meanwhile."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Run a qcluster meanwhile."""
    process = subprocess.Popen([sys.executable, "manage.py", "qcluster"], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
