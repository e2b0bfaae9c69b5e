"""The two lanes of the suite: what failed is tried again, and its last lines say how that went."""

import os
import sys
from pathlib import Path

import pytest

from tests import both
from tests.sharing import SHARED

pytestmark = pytest.mark.once

FILE = """
import os
from pathlib import Path
import pytest

def times(name):
    with Path(name).open("a+") as file:
        file.write(".")
    return Path(name).stat().st_size

def test_passes():
    pass

def test_fails_once():
    assert times("once") > 1

def test_fails_always():
    assert not "always"

def test_fails_in_the_third_try():
    assert times("third") not in (1, 4)

def test_leaves():
    os._exit(3)

@pytest.fixture
def late():
    yield
    assert times("late") > 1

def test_teardown(late):
    pass

def test_fails_twice(late):
    assert times("twice") > 1

@pytest.mark.parametrize("number", range(4))
def test_many(number):
    assert times(str(number)) > 1
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return what runs tests of a small file in two lanes, which know no database."""
    program = (sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", ".")
    plugins = ("-p", "tests.sharing", "-p", "no:cacheprovider")
    for name in ("PRODUCTION", "EMBEDDED"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "test_it.py").write_text(FILE)
        there = (
            "env",
            "-C",
            str(folder),
            f"PYTHONPATH={Path.cwd()}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
        )
        command = (*there, *program, *plugins)
        monkeypatch.setattr(both, name, both.Lane(name, command))
    return lambda *arguments: both.main(["-k", *arguments])


def file_in(lane):
    """Return the path of a lane's file of tests."""
    return Path(lane.command[2], "test_it.py")


def verdicts(capfd):
    """Return the last lines: what failed, and what came of it."""
    lines = capfd.readouterr().out.splitlines()
    return [line.strip("= ") for line in lines if line.startswith(("== UNSTABLE", "== BROKEN"))]


def test_what_passes_is_not_tried_again(run, capfd):
    assert run("test_passes") == 0
    assert "again" not in capfd.readouterr().out


def test_what_failed_once_is_unstable(run, capfd):
    assert run("test_fails_once") == 0
    assert verdicts(capfd) == [
        f"UNSTABLE, failed once and passed alone ({lane}): test_it.py::test_fails_once"
        for lane in ("PRODUCTION", "EMBEDDED")
    ]


@pytest.mark.parametrize("name", ["test_fails_always", "test_fails_in_the_third_try"])
def test_what_fails_again_is_broken(run, capfd, name):
    assert run(name) == 1
    found = verdicts(capfd)
    assert len(found) == 2
    assert all(line.startswith("BROKEN, failed alone too") for line in found)


@pytest.mark.parametrize("name", ["test_teardown", "test_fails_twice"])
def test_a_test_is_named_once_whatever_of_it_failed(run, capfd, name):
    file_in(both.EMBEDDED).write_text(f"def {name}(): pass")
    assert run(name) == 0
    assert verdicts(capfd) == [
        f"UNSTABLE, failed once and passed alone (PRODUCTION): test_it.py::{name}"
    ]


def test_one_broken_beside_one_unstable_is_no_pass(run, capfd):
    file_in(both.EMBEDDED).write_text("def test_fails_always(): assert False")
    assert run("test_fails_once or test_fails_always") == 1
    assert sorted(line.split(",")[0] for line in verdicts(capfd)) == [
        "BROKEN",
        "BROKEN",
        "UNSTABLE",
    ]


def test_many_failures_are_not_tried_again(run, capfd):
    assert run("test_many") == 1
    assert "again" not in capfd.readouterr().out


@pytest.mark.parametrize("arguments", [["nothing-of-this-name"], ["test_passes", "--no-such"]])
def test_a_lane_that_could_not_work_fails_the_run(run, capfd, arguments):
    assert run(*arguments) == 1
    assert "again" not in capfd.readouterr().out


def test_a_run_that_died_fails_it_all_whatever_failed_before(run, capfd):
    assert run("test_fails_once or test_leaves") == 1
    assert "again" not in capfd.readouterr().out


def test_a_run_that_was_cut_short_fails_it_all(run, capfd):
    assert run("test_fails_once or test_fails_in_the_third_try", "-x") == 1
    assert "again" not in capfd.readouterr().out


def test_what_a_test_starts_writes_no_names():
    assert SHARED not in os.environ
