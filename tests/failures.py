"""Write the names of tests that fail to the file that TESTS_FAILURES names, a line each."""

import os
from pathlib import Path

import pytest

FAILURES_FILE = "TESTS_FAILURES"

_file = os.environ.pop(FAILURES_FILE, "")  # nothing that a test starts shall write there
_named: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a test once, whatever of it failed."""
    if _file and report.failed and report.nodeid not in _named:
        _named.add(report.nodeid)
        with Path(_file).open("a") as file:
            file.write(f"{report.nodeid}\n")
