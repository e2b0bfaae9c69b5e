"""Start private MariaDB and Redis servers for tests, on free ports in temporary folders.

``python -m tests.servers -- COMMAND…`` runs a command with both, in production's environment.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from recovery.orphans import die_with_parent

DEADLINE_S = 120.0
POLL_S = 0.02
PORT_TRIES = 3
PACKAGES = {
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "mariadb": "mariadb-client",
    "mariadb-dump": "mariadb-client",
    "redis-server": "redis-server",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "nginx": "nginx-light",
    "systemd-analyze": "systemd",
}


class ServerError(RuntimeError):
    """A server for tests could not be started."""


def binary(name: str) -> str:
    """Return the path of program ``name``; raise ServerError that says what to install."""
    folders = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if not found:
        package = PACKAGES.get(name, name)
        raise ServerError(f"{name} is not installed: apt-get install {package} (or `make setup`)")
    return found


def free_port() -> int:
    """Return a port of the loopback that nobody listens on just now.

    Below those that systems give to outgoing connections, which would take it meanwhile.
    """
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Server:
    """A server process with its folder, port and login."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    addresses: tuple[str, ...] = ("127.0.0.1",)
    """Where it listens."""

    @property
    def pid(self) -> int:
        """Return the process id of the running server."""
        assert self.process is not None, "the server is stopped"
        return self.process.pid

    @property
    def url(self) -> str:
        """Return the address to put into the settings."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Tell whether the server answers on its port."""
        raise NotImplementedError

    def start(self) -> None:
        """Start and wait until the server answers; raise ServerError with its last words."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self.answers():
            if self.process is None or self.process.poll() is not None:
                raise ServerError(f"{self.command()[0]} did not start:\n{self.last_words()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self.command()[0]} does not answer:\n{self.last_words()}")
            time.sleep(POLL_S)

    def last_words(self) -> str:
        """Return the end of the server's log."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-20:])

    def stop(self) -> None:
        """Shut down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End at once, as a power cut would."""
        self._end(signal.SIGKILL)

    def _end(self, signum: int) -> None:
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(signum)
        self.process.wait(DEADLINE_S)
        self.process = None

    def pause(self) -> None:
        """Freeze: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop if running, and start again on the same port with the same data."""
        self.stop()
        self.start()

    def greeting(self, request: bytes = b"") -> bytes:
        """Return the first bytes the server sends after ``request``; empty: it is not there."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as link:
            link.sendall(request)
            return link.recv(16)
        return b""


@dataclass
class MariaDB(Server):
    """A MariaDB server whose clock is eight hours ahead of UTC, as in production."""

    name: str = "recovery"
    user: str = "recovery"
    password: str = field(default_factory=lambda: secrets.token_hex(8), repr=False)

    @property
    def url(self) -> str:
        """Return the address for a user with the rights that production grants."""
        return f"mysql://{self.user}:{self.password}@127.0.0.1:{self.port}/{self.name}"

    @property
    def admin_url(self) -> str:
        """Return the address for a user who may do everything."""
        return self.url.replace(f"//{self.user}:", "//admin:")

    def install(self) -> None:
        """Make the system tables and the file that makes users and database at each start."""
        command = [
            binary("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            self._own_tmpdir(),
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            *_as_root(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerError(f"mariadb-install-db failed:\n{done.stdout}{done.stderr}")
        (self.folder / "init.sql").write_text(self._init_sql())

    def _own_tmpdir(self) -> str:
        # In a common one each server that starts removes the temporary tables of all others.
        place = self.folder / "tmp"
        place.mkdir(exist_ok=True)
        return f"--tmpdir={place}"

    def _init_sql(self) -> str:
        password = f"IDENTIFIED BY '{self.password}'"
        user, admin = f"'{self.user}'@'%'", "'admin'@'%'"
        statements = [
            f"ALTER USER root@localhost {password}",
            f"CREATE DATABASE IF NOT EXISTS `{self.name}` CHARACTER SET utf8mb4",
            f"CREATE USER IF NOT EXISTS {user} {password}",
            f"GRANT ALL ON `{self.name}`.* TO {user}",
            f"GRANT ALL ON `test\\_%`.* TO {user}",
            f"GRANT PROCESS ON *.* TO {user}",  # names the holder of a row lock
            f"CREATE USER IF NOT EXISTS {admin} {password}",
            f"GRANT ALL ON *.* TO {admin} WITH GRANT OPTION",
        ]
        return "".join(f"{statement};\n" for statement in statements)

    def command(self) -> list[str]:
        """Return the server's command: durable commits, no binary log, small memory."""
        return [
            binary("mariadbd"),
            "--no-defaults",
            *_as_root(),
            f"--datadir={self.folder / 'data'}",
            self._own_tmpdir(),
            f"--init-file={self.folder / 'init.sql'}",
            "--socket=server.sock",  # in the data folder: a path has 107 characters at most
            "--pid-file=server.pid",
            f"--bind-address={','.join(self.addresses)}",
            f"--port={self.port}",
            "--default-time-zone=+08:00",
            "--character-set-server=utf8mb4",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--performance-schema=OFF",
            "--innodb-buffer-pool-size=256M",
            "--innodb-log-file-size=64M",
            "--innodb-flush-log-at-trx-commit=1",
            "--max-connections=200",
        ]

    def answers(self) -> bool:
        """Tell whether the server sends its handshake (protocol 10)."""
        return self.greeting()[4:5] == b"\x0a"


@dataclass
class Redis(Server):
    """A Redis server that keeps nothing on disk."""

    @property
    def url(self) -> str:
        """Return the address of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        """Return the server's command."""
        return [
            binary("redis-server"),
            *("--port", str(self.port)),
            *("--bind", *self.addresses),
            *("--protected-mode", "no"),
            *("--dir", str(self.folder)),
            *("--save", ""),
            *("--appendonly", "no"),
        ]

    def answers(self) -> bool:
        """Tell whether the server answers PING."""
        return self.greeting(b"PING\r\n").startswith(b"+PONG")


def _as_root() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []


@contextmanager
def mariadb(place: Path | None = None, *, also_on: Sequence[str] = ()) -> Iterator[MariaDB]:
    """Run a private MariaDB server on the loopback and on the addresses ``also_on``.

    Its folder is in ``place`` where one is given.
    """
    with folder_for("mariadb", place) as folder:
        server = MariaDB(folder, free_port(), addresses=("127.0.0.1", *also_on))
        server.install()
        with running(server):
            yield server


@contextmanager
def redis(*, also_on: Sequence[str] = ()) -> Iterator[Redis]:
    """Run a private Redis server on the loopback and on the addresses ``also_on``."""
    with folder_for("redis") as folder:
        server = Redis(folder, free_port(), addresses=("127.0.0.1", *also_on))
        with running(server):
            yield server


@contextmanager
def folder_for(kind: str, place: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder for a server."""
    with tempfile.TemporaryDirectory(
        prefix=f"tests-{kind}-", dir=place, ignore_cleanup_errors=True
    ) as path:
        yield Path(path)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run a server; end it at once afterwards."""
    try:
        _start_somewhere(server)
        yield server
    finally:
        server.kill()


def _start_somewhere(server: Server) -> None:
    for _try in range(PORT_TRIES - 1):
        with suppress(ServerError):  # somebody else may have taken the port meanwhile
            return server.start()
        server.port = free_port()
    return server.start()


def environment(database: MariaDB, cache: Redis) -> dict[str, str]:
    """Return production's environment with these two servers."""
    return {
        "DATABASE_URL": database.url,
        "TEST_ADMIN_DATABASE_URL": database.admin_url,
        "REDIS_URL": cache.url,
        "SECRET_KEY": secrets.token_urlsafe(50),
        "DEBUG": "false",
        "SECURE_SSL_REDIRECT": "false",  # no proxy stands in front of the tests
    }


def run(command: Sequence[str], extra: Mapping[str, str]) -> int:
    """Run ``command`` with ``extra`` in its environment; pass signals on; return its status."""
    early: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        at_terminal = signum == signal.SIGINT and sys.stdin.isatty()
        if at_terminal:  # there the whole process group has had it already
            return
        if child is None:
            early.append(signum)
        else:
            child.send_signal(signum)

    signums = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(signum, pass_on) for signum in signums]
    try:
        child = subprocess.Popen(
            command, env={**os.environ, **extra}, preexec_fn=die_with_parent(signal.SIGTERM)
        )
        for missed in early:
            child.send_signal(missed)
        status = child.wait()
    finally:
        for signum, handler in zip(signums, before, strict=True):
            signal.signal(signum, handler)
    return status if status >= 0 else 128 - status


def main(arguments: Sequence[str]) -> int:
    """Run the command behind ``--`` with both servers; 2 where there is none."""
    command = [*arguments[1:]] if arguments[:1] == ["--"] else []
    if not command:
        sys.stderr.write("usage: python -m tests.servers -- COMMAND [ARGUMENT…]\n")
        return 2
    try:
        with mariadb() as database, redis() as cache:
            return run(command, environment(database, cache))
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _leave(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)  # through the context managers, which end the servers


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    sys.exit(main(sys.argv[1:]))
