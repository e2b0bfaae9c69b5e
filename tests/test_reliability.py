"""Each promise in docs/reliability.md names the tests that hold it, and they are there."""

import re
from pathlib import Path

from django.conf import settings

TESTS = Path(settings.BASE_DIR) / "tests"
TEXT = (Path(settings.BASE_DIR) / "docs" / "reliability.md").read_text()
NAMED = re.findall(r"`([a-z_/]+\.py)(?:::(test_\w+))?`", TEXT)
LIMITS = "## What is not promised"


def test_each_test_that_is_named_is_there():
    assert len(NAMED) > 30
    for path, name in NAMED:
        source = (TESTS / path).read_text()
        assert not name or f"def {name}(" in source, f"{path}::{name}"


def test_each_promise_names_a_test():
    promises = [
        line
        for table in TEXT.split("| promise | held by | test |\n| --- | --- | --- |\n")[1:]
        for line in table.split("\n\n")[0].splitlines()
    ]
    assert len(promises) > 20
    for line in promises:
        assert ".py" in line.split("|")[3], line


def test_each_file_of_fault_tests_holds_a_promise():
    files = {f"faults/{path.name}" for path in (TESTS / "faults").glob("test_*.py")}
    assert files == {path for path, _ in NAMED if path.startswith("faults/")}


def test_limits_are_stated():
    limits = TEXT.split(LIMITS)[1]
    for word in ("replica", "Galera", "MySQL 8", "webhook", "SQLite"):
        assert word in limits, word
