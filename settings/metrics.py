"""Where processes count: a file each in one directory a host, so that one scrape sees them all."""

import os
import tempfile
import time
from pathlib import Path

_own = (0, "")


def process_identity() -> str:
    """Return ``<pid>-<time of the first count>``: unlike a pid it is never used again."""
    global _own
    pid = os.getpid()
    if _own[0] != pid:
        _own = (pid, f"{pid}-{time.time_ns():x}")
    return _own[1]


def count_in(directory: Path) -> bool:
    """Let prometheus_client count in ``directory``; False where it cannot be written.

    Call it before anything makes a metric: the library decides when it is imported.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError:
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        return False
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    from prometheus_client import values

    values.ValueClass = values.MultiProcessValue(process_identity)
    return True
