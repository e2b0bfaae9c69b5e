"""Run ``manage.py`` in processes of its own, on the test's database and Redis."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.db import connection

from recovery.orphans import die_with_parent
from tests.waiting import eventually

TIMEOUT_S = 240


class Finished(subprocess.CompletedProcess[str]):
    """A command that has ended."""

    def json(self) -> Any:
        """Return the one JSON document on its standard output."""
        assert self.stdout.strip(), f"status {self.returncode}, no output; {self.stderr}"
        return json.loads(self.stdout)


class Started:
    """A command that runs, as the leader of a session of its own."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        """Start it; what it prints goes to files, since a full pipe would hang it."""
        # Append mode: reading moves the offset that the process would otherwise write at.
        self.out, self.err = (tempfile.TemporaryFile("a+", encoding="utf-8") for _ in range(2))  # noqa: SIM115 - closed by kill_all
        self.process = subprocess.Popen(
            arguments,
            cwd=settings.BASE_DIR,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.err,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent(),  # a killed test run leaves nothing behind
        )

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self.process.pid

    def is_stopped(self) -> bool:
        """Tell whether the process was stopped by SIGSTOP."""
        assert self.process.poll() is None, self.printed()
        return is_stopped(self.pid)

    def has_ended(self) -> bool:
        """Tell whether the process has ended."""
        return self.process.poll() is not None

    def local_ports(self) -> set[int]:
        """Return the ports of its side of the connections it has open."""
        return local_ports(self.pid)

    def signal(self, signum: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.pid, signum)

    def family(self) -> set[int]:
        """Return the processes of its session that are alive, whatever group they are in."""
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return {pid for pid in pids if _belongs(pid, self.pid)}

    def finish(self, *, timeout_s: float = TIMEOUT_S) -> Finished:
        """Wait for the end; return what was printed."""
        self.process.wait(timeout=timeout_s)
        return Finished(self.process.args, self.process.returncode, *self.printed())

    def printed(self) -> tuple[str, str]:
        """Return what was printed so far, on standard output and standard error."""
        return _read(self.out), _read(self.err)

    def kill_all(self) -> None:
        """Kill the process and all it started, and wait until they are gone."""
        eventually(self._none_lives)
        self.process.wait(timeout=TIMEOUT_S)
        self.out.close()
        self.err.close()

    def _none_lives(self) -> bool:
        """Kill who lives: what forks just now has a child that was not seen before."""
        family = self.family()
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not family


def local_ports(pid: int) -> set[int]:
    """Return the ports of a process' side of the connections it has open."""
    files = {*_open_files(pid)}
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    sockets = {f"socket:[{columns[9]}]": columns[1] for columns in map(str.split, lines)}
    return {int(sockets[it].rpartition(":")[2], 16) for it in files & sockets.keys()}


def _open_files(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed just now
            yield path.readlink().name


def is_stopped(pid: int) -> bool:
    """Tell whether a process was stopped by SIGSTOP."""
    return _stat(pid)[0] == "T"


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _stat(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["X"]


def _belongs(pid: int, session: int) -> bool:
    state, *numbers = _stat(pid)
    return state not in "XZ" and numbers[2] == str(session)


class Manage:
    """Runs ``manage.py``; everything it started and that still runs is killed at the end."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.started: list[Started] = []

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None) -> Finished:
        """Run a command to its end."""
        return self.start(*arguments, env=env).finish()

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None, within: Sequence[str] = ()
    ) -> Started:
        """Start a command and return at once; ``within`` is a program that turns into it."""
        command = [*within, sys.executable, "manage.py", *arguments]
        self.started.append(Started(command, environment() | dict(env or {})))
        return self.started[-1]

    def clean_up(self) -> None:
        """Kill whatever still runs."""
        for started in self.started:
            started.kill_all()


def database_url() -> str:
    """Return the URL of the database the test uses."""
    config = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{config['NAME']}"
    login = f"{config['USER']}:{config['PASSWORD']}@{config['HOST']}:{config['PORT']}"
    return f"mysql://{login}/{config['NAME']}"


def environment() -> dict[str, str]:
    """Return the environment of a process on the test's database and Redis."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "settings.base",
        "DATABASE_URL": database_url(),
        "REDIS_URL": settings.REDIS_URL,
        "SECRET_KEY": settings.SECRET_KEY,
        "AUDIT_TRIGGERS": "false",  # a test empties all tables
        "DEBUG": "false",
        "LOG_FORMAT": "json",
    }
