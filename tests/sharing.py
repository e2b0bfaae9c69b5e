"""Several runs of pytest share a suite, file by file, and name the tests that fail.

``TESTS_SHARED`` is the folder that they share; without it a run is like any other.
"""

import os
from collections.abc import Iterator
from itertools import chain, groupby, pairwise
from pathlib import Path

import pytest

SHARED = "TESTS_SHARED"

_folder = os.environ.pop(SHARED, "")  # what a test starts is no part of this run


def failed_in(folder: Path) -> list[str]:
    """Return the names of the tests that failed, each once."""
    file = folder / "failed"
    return sorted({*file.read_text().splitlines()}) if file.exists() else []


def was_cut_short(folder: Path) -> bool:
    """Tell whether a run stopped before it had tried all there was to take."""
    return (folder / "cut short").exists()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a test of which something failed."""
    if _folder and report.failed:
        with Path(_folder, "failed").open("a") as file:
            file.write(f"{report.nodeid}\n")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run, part by part, what no other run has taken."""
    if not _folder or session.config.option.collectonly or session.testsfailed:
        return None  # pytest's own loop
    for item, following in pairwise(chain(_taken(session.items), [None])):
        assert item is not None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail or session.shouldstop:
            Path(_folder, "cut short").touch()
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
    return True


def _taken(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield the tests of the parts that are taken one after the other, each in time.

    A part is taken as the last test of the one before it begins: so that test leaves standing
    what both need, such as the database.
    """
    ours: dict[str, bool] = {}
    for part, tests in groupby(items, key=_part):
        if part not in ours:  # a part may be named here and there
            ours[part] = _take(part)
        if ours[part]:
            yield from tests


def _part(item: pytest.Item) -> str:
    """Return the part of its file that a test is in.

    pytest-django puts tests in transactions before all others: were a file one part, all files
    would be taken by the end of the first half.
    """
    marker = item.get_closest_marker("django_db")
    names = getattr(item, "fixturenames", ())
    commits = (marker and marker.kwargs.get("transaction")) or "transactional_db" in names
    return f"{item.path} {'commits' if commits else 'stays within'}"


def _take(part: str) -> bool:
    try:
        Path(_folder, part.replace(os.sep, "+")).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
