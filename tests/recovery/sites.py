"""A site as it is run in production: gunicorn with two workers that count in one directory."""

import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests import servers
from tests.processes import Manage, Started, environment
from tests.waiting import eventually

TOKEN = "s3cret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
Series = dict[tuple[str, ...], float]


class Site:
    """A gunicorn on the test's database."""

    def __init__(self, manage: Manage, counters: Path, **more: str) -> None:
        """Start it and wait until it answers."""
        self.manage, self.more = manage, {"PROMETHEUS_MULTIPROC_DIR": str(counters), **more}
        self.port = servers.free_port()
        self.start()

    def start(self) -> None:
        """Start it, again at the same address, and wait until it answers."""
        address = ("--bind", f"127.0.0.1:{self.port}", "--workers", "2")
        self.started = Started(
            [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", *address],
            environment()
            | {"METRICS_TOKEN": TOKEN, "DEBUG": "true", "SECURE_SSL_REDIRECT": "false"}
            | self.more,
        )
        self.manage.started.append(self.started)
        eventually(lambda: self.ask("/healthz")[0] == 200)
        eventually(lambda: len(self.workers()) == 2)

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        return sorted(self.started.family() - {self.started.pid})

    def kill_worker(self) -> None:
        """End a worker at once, and wait until there is another one."""
        before = self.workers()
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(self.workers()) == 2 and self.workers() != before)

    def stop(self) -> None:
        """Stop in order."""
        self.started.signal(signal.SIGTERM)
        self.started.finish()

    def ask(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Return status and body; status 0: nobody listens, or it died meanwhile."""
        return asked(self.port, path, method, headers)

    def scrape(self) -> Series:
        """Return what /metrics exports, by name and labels, once nobody holds it."""
        answers = []

        def answered() -> bool:
            answers.append(self.ask("/metrics", headers=BEARER))
            return answers[-1][0] != 503

        eventually(answered)
        status, body = answers[-1]
        assert status == 200, body
        return series(body)


def asked(
    port: int, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Return status and body of a request to the loopback; status 0: nobody there, or it died."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        try:
            client.request(method, path, headers=dict(headers or {}))
            answer = client.getresponse()
            return answer.status, answer.read().decode()
        except (ConnectionError, HTTPException):  # also in the middle of its answer
            return 0, ""


def series(text: str) -> Series:
    """Return the values of a scrape, by name and label values in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip


def status_of(port: int, *lines: bytes) -> int:
    """Return the status of the answer to a request of these lines, byte by byte."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
        return int(link.makefile("rb").readline().split()[1])
