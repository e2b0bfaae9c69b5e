"""A completion endpoint of the demo's own: stands in for an ERP, and can be taken away."""

import json
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from splits.demo.environment import HOST

LOOK_EVERY_S = 0.05


class EndpointTakenError(Exception):
    """Somebody else listens on the endpoint's port."""


class Post(NamedTuple):
    """What was said of one order."""

    number: str
    key: str
    """The Idempotency-Key."""
    body: bytes


class Endpoint:
    """Answers 200 to every POST in threads of this process, while it is up."""

    def __init__(self, port: int, *, on_post: Callable[[Post], object]) -> None:
        """Take ``port`` (0: any that is free), not listening yet; answers after ``on_post``.

        Raises EndpointTakenError.
        """
        self.port = port
        self._on_post = on_post
        self._thread: threading.Thread | None = None
        self._server = self._reserved()
        self.port = int(self._server.server_port)

    def __enter__(self) -> Self:
        """Come up."""
        self.come_up()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        """Go, and give the port back."""
        self._stop()

    def come_up(self) -> None:
        """Listen and answer."""
        self._server.server_activate()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LOOK_EVERY_S,), daemon=True
        )
        self._thread.start()

    def go_down(self) -> None:
        """Refuse connections, as a server that is switched off; the port stays ours."""
        self._stop()
        self._server = self._reserved()

    def _stop(self) -> None:
        if self._thread:
            self._server.shutdown()
            self._thread.join()
        self._thread = None
        self._server.server_close()

    def _reserved(self) -> "_Server":
        server = _Server((HOST, self.port), _handler(self._on_post), bind_and_activate=False)
        try:
            server.server_bind()
        except OSError as error:
            server.server_close()
            raise EndpointTakenError(str(error)) from error
        return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Bind, without the look-up of this host's name that http.server would make."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, *_args: Any) -> None:
        """Say nothing: a client that hung up tries again."""


def _handler(on_post: Callable[[Post], object]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            key = self.headers.get("Idempotency-Key", "")
            # Before anything can follow from the answer.
            on_post(Post(json.loads(body)["order_number"], key, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            """Leave standard error alone."""

    return Handler
