"""Loaded before Django's settings: a test run counts in a directory of its own."""

import atexit
import os
import shutil
import tempfile

_directory = tempfile.mkdtemp(prefix="tallies-")
_owner = os.getpid()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = _directory


def _forget() -> None:
    if os.getpid() == _owner:
        shutil.rmtree(_directory, ignore_errors=True)


atexit.register(_forget)
