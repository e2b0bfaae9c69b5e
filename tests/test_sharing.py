"""Runs of pytest that share a suite: each test once, each file in one run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sharing import SHARED, failed_in

pytestmark = pytest.mark.once

CONFTEST = """
import os
import time
from pathlib import Path
import pytest

ROOT = Path(__file__).parent

def note(kind, name):
    with (ROOT / "notes").open("a") as file:
        file.write(f"{kind} {os.getpid()} {name}\\n")

@pytest.fixture(scope="session", autouse=True)
def database():
    note("begin", "session")
    begun = lambda: (ROOT / "notes").read_text().count("begin")
    end = time.monotonic() + 60
    while begun() < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert begun() == 2
    yield
    note("end", "session")

@pytest.fixture(autouse=True)
def noted(request):
    note("test", request.node.nodeid)
"""
TEST = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_it(number):
    pass

def test_other():
    pass
"""
FILES = ("test_0.py", "a/test_1.py", "a/test_2.py", "a/b/test_3.py", "c/test_4.py", "test_5.py")


def run(folder, *arguments, **environ):
    """Start pytest on the files in a folder."""
    command = (sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", ".", "-q")
    plugins = ("-p", "tests.sharing", "-p", "no:cacheprovider", "--import-mode=importlib")
    more = {"PYTHONPATH": str(Path.cwd()), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.Popen(
        [*command, *plugins, *arguments], cwd=folder, env={**os.environ, **more, **environ},
        text=True, stdout=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def suite(tmp_path):
    """Return a folder of test files in folders of folders, and one that its runs share."""
    folder, shared = tmp_path / "suite", tmp_path / "shared"
    shared.mkdir()
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(TEST)
    (folder / "conftest.py").write_text(CONFTEST)
    return folder, shared


def notes(folder, kind):
    """Return what was noted: process and name."""
    lines = (folder / "notes").read_text().splitlines()
    return [tuple(line.split()[1:]) for line in lines if line.startswith(kind)]


def test_each_test_runs_once_and_each_run_has_its_session_once(suite):
    folder, shared = suite
    runs = [run(folder, **{SHARED: str(shared)}) for _ in range(2)]
    said = [it.communicate()[0] for it in runs]
    assert [it.returncode for it in runs] == [0, 0], said
    names = [name for _, name in notes(folder, "test")]
    assert len(names) == len(set(names)) == 4 * len(FILES)
    assert len({pid for pid, _ in notes(folder, "test")}) == 2
    takers = {(name.split("::")[0], pid) for pid, name in notes(folder, "test")}
    assert len(takers) == len(FILES)
    assert len(notes(folder, "begin")) == len(notes(folder, "end")) == 2


def test_a_file_named_here_and_there_stays_with_its_run(suite):
    folder, shared = suite
    (folder / "conftest.py").write_text("")
    named = ["test_0.py::test_other", "test_5.py", "test_0.py::test_it"]
    done = run(folder, *named, **{SHARED: str(shared)})
    assert "8 passed" in done.communicate()[0]
    done = run(folder, *named, **{SHARED: str(shared)})
    assert "no tests ran" in done.communicate()[0]
    assert done.returncode == 0


def test_without_a_shared_folder_all_tests_run(suite):
    folder, _shared = suite
    (folder / "conftest.py").write_text("")
    assert "24 passed" in run(folder, **{SHARED: ""}).communicate()[0]


def test_what_failed_is_named_and_ends_the_run_where_that_was_asked(suite):
    folder, shared = suite
    (folder / "conftest.py").write_text("")
    (folder / "test_0.py").write_text("def test_it(): assert False")
    done = run(folder, "-x", "test_0.py", "test_5.py", **{SHARED: str(shared)})
    assert "1 failed in" in done.communicate()[0]
    assert done.returncode == 1
    assert failed_in(shared) == ["test_0.py::test_it"]
    assert failed_in(folder) == []


def test_a_file_that_cannot_be_read_is_no_failed_test(suite):
    folder, shared = suite
    (folder / "test_0.py").write_text("import nothing_of_this_name")
    done = run(folder, **{SHARED: str(shared)})
    done.communicate()
    assert done.returncode == 2
    assert failed_in(shared) == []
