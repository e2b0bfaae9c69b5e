"""The probes on a port of their own, for hosts that run workers and no web server."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from django.core.handlers.wsgi import WSGIRequest
from django.db import connections
from django.http import HttpResponse
from django_q.cluster import get_mp_context

from recovery import probes

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``port``; raise OSError where it is taken."""
    return socket.create_server((host, port), backlog=16, reuse_port=False)


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]
) -> Iterable[bytes]:
    """Answer the probes, and nothing else, as a WSGI application."""
    response = _answer(environ)
    start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.content]


def _answer(environ: dict[str, Any]) -> HttpResponse:
    try:
        return probes.answer(WSGIRequest(environ)) or HttpResponse(
            "only /metrics, /healthz and /readyz are here\n", status=404, content_type="text/plain"
        )
    except Exception:  # wsgiref would print it
        logger.exception("probe_failed", extra={"path": environ.get("PATH_INFO")})
        return HttpResponse("the probe failed\n", status=500, content_type="text/plain")


class SidePort:
    """A forked process that answers probes until its parent is gone."""

    def __init__(self, listener: socket.socket) -> None:
        """Serve on a socket that listens already."""
        self.listener = listener
        self.process: Any = None

    def keep(self) -> None:
        """Start the process, again where it died."""
        if self.process is not None and self.process.is_alive():
            return
        if self.process is not None:
            logger.error("sideport_died", extra={"exitcode": self.process.exitcode})
        connections.close_all()  # a forked copy that is closed would close ours
        self.process = get_mp_context().Process(target=_serve, args=(self.listener, os.getpid()))
        self.process.start()

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join(1)
        self.listener.close()


class _Handler(WSGIRequestHandler):
    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        logger.debug("probe_answered", extra={"request": format % args})


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    parent = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        facts = {"client": client_address}
        logger.warning("probe_broken_off", exc_info=sys.exc_info(), extra=facts)

    def service_actions(self) -> None:
        if os.getppid() != self.parent:
            os._exit(0)


def _serve(listener: socket.socket, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    host, port = listener.getsockname()[:2]
    server = _Server((host, port), _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.parent = parent
    server.server_name, server.server_port = host, port
    server.setup_environ()
    server.set_app(application)
    server.serve_forever(LOOK_EVERY_S)
