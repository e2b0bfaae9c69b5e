"""A real web server to ask."""

import json
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import Any

from tests import servers
from tests.processes import Manage
from tests.waiting import eventually


class Web:
    """A web server of the product on the test's database, asked by address."""

    def __init__(self, manage: Manage, **environment: str) -> None:
        """Start it and wait until it answers."""
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._manage, self._environment = manage, environment
        self.start()

    def start(self) -> None:
        """Start it, at the same address as before, and wait until it answers."""
        command = ("runserver", "--noreload", f"127.0.0.1:{self.port}")
        self.started = self._manage.start(*command, env=self._environment)
        eventually(lambda: self.ask("/healthz")[0] == 200)

    def ask(self, path: str) -> tuple[int, str]:
        """Return status and body of ``path``; status 0: nobody listens."""
        return ask(self.port, path)

    def ready(self) -> tuple[int, dict[str, Any]]:
        """Return status and facts of ``/readyz``."""
        status, body = self.ask("/readyz")
        return status, json.loads(body)


def ask(port: int, path: str) -> tuple[int, str]:
    """Return status and body of ``path`` on a port of the loopback; status 0: nobody listens."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        try:
            client.request("GET", path, headers={"Host": "somewhere.else"})
            answer = client.getresponse()
            return answer.status, answer.read().decode()
        except (ConnectionError, HTTPException):
            return 0, ""
