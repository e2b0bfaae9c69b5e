"""``import_splits``: output, exit status, memory, interruption, two at once."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError

from splits.models import Lot, SplitLine, SplitOrder
from tests.splits.plans import HEAD, order, plan, row
from tests.splits.processes import is_stopped, manage, python, wait_until

DEADLINE_S = 120
MEMORY_SLACK_KB = 12_000
BIG, SMALL = 50_000_000, 1_000_000

pytestmark = pytest.mark.django_db


def run(path, *options):
    """Run the command; return exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("import_splits", str(path), *options, stdout=out, stderr=err)
    except SystemExit as left:
        return left.code, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


@pytest.fixture
def file(tmp_path):
    """A file to be written."""
    return tmp_path / "plan.csv"


def test_good_file_exits_0_and_counts(file):
    file.write_bytes(plan(*order("SO-1"), *order("SO-2")))
    assert run(file) == (0, "2 orders imported, 0 skipped (known), 0 errors\n", "")
    assert run(file, "--finalize") == (
        0,
        "0 orders imported, 2 skipped (known), 2 submitted, 0 errors\n",
        "",
    )


def test_errors_go_to_standard_error_and_exit_1(file):
    file.write_bytes(plan(*order("SO-1"), row("SO-2", quantity="-1")))
    status, out, err = run(file)
    assert (status, out) == (1, "1 orders imported, 0 skipped (known), 1 errors\n")
    assert err == "row 4 order SO-2: quantity '-1': not greater than zero\n"


def test_json_is_one_document_and_nothing_else(file):
    file.write_bytes(plan(*order("SO-1"), row("Ü", quantity="9"), row("SO-3", line="x")))
    status, out, err = run(file, "--json")
    assert (status, err) == (1, "")
    assert json.loads(out) == {
        "imported": 1,
        "skipped": 0,
        "errors": [
            {
                "row": 4,
                "order_number": "Ü",
                "message": "the lines add up to 9, not to the board's 10",
            },
            {
                "row": 5,
                "order_number": "SO-3",
                "message": "line 'x': not a whole number from 1 to 999",
            },
        ],
    }


def test_json_of_a_good_file(file):
    file.write_bytes(plan(*order()))
    status, out, _err = run(file, "--json")
    assert (status, json.loads(out)) == (0, {"imported": 1, "skipped": 0, "errors": []})


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_file_that_cannot_be_read_is_wrong_usage(tmp_path, options):
    for path in (tmp_path / "missing.csv", tmp_path, "bad\0name"):
        with pytest.raises(CommandError, match="cannot read") as caught:
            run(path, *options)
        assert caught.value.returncode == 2


def test_pipe_is_read_like_a_file(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(sys.argv[2])", path,
         plan(*order()).decode()]
    )  # fmt: skip
    assert run(path)[0] == 0
    assert writer.wait(DEADLINE_S) == 0


def test_sample_that_ships_is_whole():
    status, out, err = run(settings.BASE_DIR / "splits" / "sample" / "cut_plans.csv", "--json")
    assert (status, json.loads(out)["imported"], err) == (0, 120, "")
    assert SplitLine.objects.count() == Lot.objects.count() + 477


# Real processes


@pytest.mark.django_db(transaction=True)
def test_two_imports_of_one_file_at_once_share_the_work(file):
    orders = 150
    file.write_bytes(plan(*(line for n in range(orders) for line in order(f"SO-{n:04d}"))))
    both = [manage("import_splits", str(file), "--json", "--finalize") for _ in range(2)]
    results = []
    for process in both:
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        results.append(json.loads(out))
    assert [it["errors"] for it in results] == [[], []]
    assert sum(it["imported"] for it in results) == orders
    assert sum(it["skipped"] for it in results) == orders
    assert SplitOrder.objects.count() == Lot.objects.count() == orders
    assert SplitLine.objects.count() == 2 * orders


STOPPING = """
import os, signal, sys
import django
django.setup()
from django.core.management import execute_from_command_line
from splits.imports import Import
store, when = Import._store_once, sys.argv[2]

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

def store_or_stop(self, order, known):
    if order.number == "SO-0007" and when == "before":
        stop()
    store(self, order, known)
    if order.number == "SO-0007" and when == "after":
        stop()

Import._store_once = store_or_stop
execute_from_command_line(["manage.py", "import_splits", sys.argv[1]])
"""
"""An import that stops itself just before or just after it has stored the eighth order."""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("when", "done"), [("before", 7), ("after", 8)])
def test_interrupted_import_keeps_what_is_committed_and_goes_on(file, when, done):
    orders = 150
    file.write_bytes(plan(*(line for n in range(orders) for line in order(f"SO-{n:04d}"))))
    process = python("-c", STOPPING, str(file), when)
    wait_until(lambda: is_stopped(process))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    assert SplitOrder.objects.count() == done
    assert f"Interrupted after {done} orders" in err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert f"{done} orders imported" in out
    status, out, _err = run(file, "--json")
    assert (status, json.loads(out)["imported"]) == (0, orders - done)


def long_row(number, line=1, **columns):
    """Return a row of about 700 bytes, so that many megabytes are few rows."""
    filler = "x" * 150
    return row(
        f"{number:07d}-" + "n" * 100, line, board_code=f"{number:07d}-{filler}",
        board_sku=f"S-{filler}", sku=f"P-{filler}", **columns,
    )  # fmt: skip


def one_line(size):
    """Yield one line that does not end."""
    yield HEAD.encode() + b"\n"
    for _ in range(size // 10_000):
        yield b"x" * 10_000


def one_order(size):
    """Yield one order of far too many lines."""
    yield HEAD.encode() + b"\n"
    text = long_row(1, quantity="0.01").encode() + b"\n"
    for _ in range(size // len(text)):
        yield text


def bad_rows(size):
    """Yield orders of one bad row each."""
    yield HEAD.encode() + b"\n"
    length = len(long_row(0, quantity="-1")) + 1
    for number in range(size // length):
        yield long_row(number, quantity="-1").encode() + b"\n"


def good_orders(size):
    """Yield orders of 999 lines each."""
    yield HEAD.encode() + b"\n"
    length = len(long_row(0, 100, quantity="0.01", board_quantity="9.99")) + 1
    for number in range(max(1, size // length // 999)):
        for line in range(1, 1_000):
            text = long_row(number, line, quantity="0.01", board_quantity="9.99")
            yield text.encode() + b"\n"


MEASURED = """
import resource, sys
from django.core.management import execute_from_command_line
status = 0
try:
    execute_from_command_line(["manage.py", "import_splits", sys.argv[1], "--json"])
except SystemExit as left:
    status = left.code
print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def with_database(path):
    """Return the environment of a process with a database of its own."""
    return os.environ | {
        "DJANGO_SETTINGS_MODULE": "settings.base",
        "DEBUG": "true",
        "DATABASE_URL": f"sqlite:///{path}",
        "LOG_LEVEL": "ERROR",
    }


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """Return a file with a database of empty tables."""
    path = tmp_path_factory.mktemp("migrated") / "db.sqlite3"
    migrate = [sys.executable, "manage.py", "migrate", "-v0"]
    subprocess.run(migrate, env=with_database(path), cwd=settings.BASE_DIR, check=True)
    return path


def peak_memory(path, chunks, migrated):
    """Import the file in a process of its own; return its peak memory in KB, the JSON's head."""
    with path.open("wb") as file:
        file.writelines(chunks)
    database = path.with_suffix(".sqlite3")
    shutil.copy(migrated, database)
    env = with_database(database)
    with (path.parent / "out.json").open("w+") as out:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(path)],
            env=env, cwd=settings.BASE_DIR, stdout=out, stderr=subprocess.PIPE, text=True,
            check=True,
        )  # fmt: skip
        out.seek(0)
        head = out.read(60)
    path.unlink()
    return int(done.stderr.split()[-1]), head


@pytest.mark.sqlite
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shape", [one_line, one_order, bad_rows, good_orders])
def test_memory_does_not_grow_with_the_file(tmp_path, shape, migrated):
    small, _head = peak_memory(tmp_path / "small.csv", shape(SMALL), migrated)
    big, head = peak_memory(tmp_path / "big.csv", shape(BIG), migrated)
    assert big - small < MEMORY_SLACK_KB, (small, big)
    imported = re.match(r'{"imported": (\d+),', head)
    assert imported
    assert (int(imported[1]) > 50) == (shape is good_orders)
