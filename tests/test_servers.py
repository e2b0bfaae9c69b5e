"""The servers of the tests: they answer, die with their command and survive faults."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from tests import servers
from tests.processes import Started
from tests.waiting import eventually

pytestmark = pytest.mark.mariadb  # once is enough


LONG_S = 150.0
"""A slow machine takes so long to set both servers up."""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Started]:
    """Start ``python -m tests.servers`` with a command that prints its environment and waits."""
    script = 'echo "$DATABASE_URL" "$REDIS_URL" "$DEBUG"; exec sleep 600'
    arguments = [sys.executable, "-m", "tests.servers", "--", "sh", "-c", script]
    started = Started(arguments, os.environ | {"TMPDIR": str(tmp_path)})
    yield started
    children = family(started)
    started.kill_all()
    assert eventually(lambda: not any(map(is_alive, children)))


def family(started: Started) -> list[int]:
    """Return the processes whose parent is ``started``."""
    path = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    """Tell whether process ``pid`` is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "XZ"
    except OSError:
        return False


def test_command_gets_both_servers_in_productions_environment(command):
    out = eventually(lambda: command.printed()[0], deadline_s=LONG_S)
    database, cache, debug = out.split()
    assert database.startswith("mysql://recovery:")
    assert cache.startswith("redis://127.0.0.1:")
    assert debug == "false"
    assert len(family(command)) == 3


def test_servers_and_command_die_with_a_killed_starter(command):
    eventually(lambda: command.printed()[0], deadline_s=LONG_S)
    children = family(command)
    command.signal(signal.SIGKILL)
    assert eventually(lambda: not any(map(is_alive, children)))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_passed_on_and_the_status_comes_back(command, signum):
    eventually(lambda: command.printed()[0], deadline_s=LONG_S)
    children = family(command)
    command.signal(signum)
    assert command.finish().returncode == 128 + signum
    assert not any(map(is_alive, children))


@pytest.mark.parametrize("status", [0, 7])
def test_status_of_the_command_comes_back(status):
    before = signal.getsignal(signal.SIGTERM)
    assert servers.run(["sh", "-c", f"exit {status}"], {}) == status
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_to_run_is_wrong_usage():
    done = subprocess.run(
        [sys.executable, "-m", "tests.servers"],
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_missing_program_says_what_to_install(monkeypatch):
    monkeypatch.setattr(servers.shutil, "which", lambda *_args, **_kwargs: None)
    with pytest.raises(servers.ServerError, match="apt-get install mariadb-server"):
        servers.binary("mariadbd")


def test_redis_can_be_stopped_killed_frozen_and_restarted():
    with servers.redis() as server:
        first = server.pid
        server.pause()
        assert not server.answers()
        server.resume()
        assert eventually(server.answers)
        server.restart()
        assert eventually(server.answers)
        server.kill()
        assert not server.answers()
        server.start()
        assert server.pid != first
    assert not server.answers()


def test_mariadb_keeps_what_was_committed_over_a_kill():
    import dj_database_url
    import MySQLdb

    with servers.mariadb() as server:
        for number in (1, 2):
            where = dj_database_url.parse(server.url)
            link = MySQLdb.connect(
                host=where["HOST"],
                port=where["PORT"],
                user=where["USER"],
                password=where["PASSWORD"],
                database=where["NAME"],
            )
            cursor = link.cursor()
            cursor.execute("CREATE TABLE IF NOT EXISTS kept (number INT PRIMARY KEY)")
            cursor.execute("INSERT INTO kept VALUES (%s)", (number,))
            link.commit()
            cursor.execute("SELECT COUNT(*) FROM kept")
            assert cursor.fetchone() == (number,)
            cursor.execute("SELECT @@tmpdir")
            (place,) = cursor.fetchone()
            assert Path(place).parent == server.folder, "others empty one that they share"
            server.kill()
            link.close()
            server.start()
