"""A TCP proxy between a client and a server on the loopback, which breaks what passes through it.

It knows one thing of MySQL's protocol: what a COMMIT looks like, to cut the wire around one.
"""

import select
import socket
import struct
import threading
import time
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Self

CHUNK = 65_536
LOOK_EVERY_S = 0.05
COMMIT = b"\x07\x00\x00\x00\x03COMMIT"
"""The packet: seven bytes, the first of its exchange, COM_QUERY, the text."""
RESET_AT_ONCE = struct.pack("ii", 1, 0)


class AtCommit(Enum):
    """Where the wire is cut when a COMMIT passes."""

    BEFORE = "the server never hears of it"
    AFTER = "the server commits, the client never hears of it"


class Link:
    """One client's connection and ours to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        """Take both ends."""
        self.client, self.server = client, server
        self.cut_at_answer = False

    def cut(self) -> None:
        """Reset both ends: each side learns at its next packet."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_ONCE)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Listens on a port of its own and passes everything on to ``target_port``."""

    def __init__(self, target_port: int) -> None:
        """Listen; pass everything on."""
        self.target_port = target_port
        self.delay_s = 0.0
        """How long each packet is kept, in either direction."""
        self.commits_cut = 0
        self.accepted = 0
        self._at_commit: AtCommit | None = None
        self._commits_left = 0
        self._passing = threading.Event()
        self._passing.set()
        self._closed = False
        self._refusing = False
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._listener = _listening(0)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        """Hand itself over."""
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _stack: TracebackType | None,
    ) -> None:
        """Close everything."""
        self._closed = True
        self._passing.set()
        self.cut()
        self._listener.close()

    def url(self, server_url: str) -> str:
        """Return ``server_url`` by way of the proxy."""
        return server_url.replace(f":{self.target_port}/", f":{self.port}/")

    def cut(self) -> int:
        """Reset every connection; return how many there were."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.cut()
        return len(links)

    def refuse(self) -> None:
        """Reset every connection and let in no other until ``mend``."""
        self._refusing = True
        self.cut()

    def swallow(self) -> None:
        """Be a black hole until ``mend``: connections stay open and nothing passes."""
        self._passing.clear()

    def cut_commits(self, where: AtCommit, count: int = 1) -> None:
        """Cut the wire of the next ``count`` COMMITs."""
        self._at_commit, self._commits_left = where, count

    def mend(self) -> None:
        """Pass everything on again."""
        self._refusing = False
        self.delay_s = 0.0
        self._at_commit, self._commits_left = None, 0
        self._passing.set()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target_port), 5)
            except OSError:
                client.close()
                continue
            self._join(client, server)

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(None)
        link = Link(client, server)
        with self._lock:
            self._links.add(link)
            self.accepted += 1
        threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: Link) -> None:
        """Pass packets both ways until one side ends."""
        with suppress(OSError, ValueError):  # ValueError: closed by ``cut`` meanwhile
            while self._pass_some(link):
                pass
        with self._lock:
            self._links.discard(link)
        for end in (link.client, link.server):
            end.close()

    def _pass_some(self, link: Link) -> bool:
        ready, _, _ = select.select([link.client, link.server], [], [], LOOK_EVERY_S)
        for source in ready:
            data = source.recv(CHUNK)
            if not data:
                return False
            self._passing.wait()
            if self.delay_s:
                time.sleep(self.delay_s)
            if source is link.client:
                if not self._to_server(link, data):
                    return False
            elif link.cut_at_answer:
                link.cut()
                return False
            else:
                link.client.sendall(data)
        return True

    def _to_server(self, link: Link, data: bytes) -> bool:
        """Pass a client's packet on; False: it was a COMMIT that was not to arrive."""
        if data == COMMIT and self._takes_commit():
            if self._at_commit is AtCommit.BEFORE:
                link.cut()
                return False
            link.cut_at_answer = True
        link.server.sendall(data)
        return True

    def _takes_commit(self) -> bool:
        with self._lock:
            if self._at_commit is None or not self._commits_left:
                return False
            self._commits_left -= 1
            self.commits_cut += 1
            return True


def _listening(port: int) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", port), backlog=200)
    listener.settimeout(None)
    return listener
