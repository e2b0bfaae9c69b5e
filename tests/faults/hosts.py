"""Several hosts on one machine: network namespaces with names of their own, or process groups."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from recovery.orphans import die_with_parent
from tests import servers
from tests.faults.proxy import Proxy
from tests.waiting import eventually

NETWORK = "198.18"
"""Kept for tests of networks (RFC 2544): no address of the machine's own is in it."""
PROGRAMS = ("ip", "unshare", "nsenter", "hostname")


class Host(Protocol):
    """Where a cluster runs; what it has of database and Redis can be taken away."""

    environment: dict[str, str]

    @property
    def within(self) -> Sequence[str]:
        """Return what runs a command there."""

    def cut(self) -> None:
        """Let nothing pass to or from it; nobody is told."""

    def mend(self) -> None:
        """Let everything pass again."""


@dataclass
class NamespaceHost:
    """A network and a host name of its own, kept by a process that waits.

    They are gone with their last process, and so is the wire: nothing is left of a killed test.
    """

    name: str
    number: int
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make it, with a wire to this machine."""
        self.wire = f"t{os.getpid()}h{self.number}"
        subnet = f"{NETWORK}.{secrets.randbelow(256)}.{4 * self.number}"
        prefix, _, base = subnet.rpartition(".")
        self.gateway, self.address = (f"{prefix}.{int(base) + n}" for n in (1, 2))
        self.keeper = subprocess.Popen(
            ["unshare", "--net", "--uts", "sh", "-c", f"hostname {self.name} && exec sleep 1d"],
            preexec_fn=die_with_parent(),
        )
        try:
            eventually(self._has_its_name)
            self._wire_up()
        except BaseException:
            self.remove()
            raise

    def _has_its_name(self) -> bool:
        named = subprocess.run([*self.within, "hostname"], capture_output=True, check=False)
        return named.stdout.decode().strip() == self.name

    def _wire_up(self) -> None:
        inside = str(self.keeper.pid)
        run("ip", "link", "add", self.wire, "type", "veth", "peer", "name", "wire", "netns", inside)
        run("ip", "address", "add", f"{self.gateway}/30", "dev", self.wire)
        run("ip", "link", "set", self.wire, "up")
        run(*self.within, "ip", "link", "set", "lo", "up")
        run(*self.within, "ip", "address", "add", f"{self.address}/30", "dev", "wire")
        run(*self.within, "ip", "link", "set", "wire", "up")

    @property
    def within(self) -> Sequence[str]:
        """Return what runs a command there."""
        return ["nsenter", f"--target={self.keeper.pid}", "--net", "--uts", "--"]

    def cut(self) -> None:
        """Take the wire down at this machine's end."""
        run("ip", "link", "set", self.wire, "down")

    def mend(self) -> None:
        """Take it up."""
        run("ip", "link", "set", self.wire, "up")

    def remove(self) -> None:
        """Remove the wire, and the rest as soon as no process is left."""
        with suppress(subprocess.CalledProcessError):
            run("ip", "link", "delete", self.wire)
        self.keeper.kill()
        self.keeper.wait()


@dataclass
class GroupHost:
    """A process group whose way to the database and to a Redis of its own are proxies."""

    to_database: Proxy
    to_cache: Proxy
    environment: dict[str, str]

    @property
    def within(self) -> Sequence[str]:
        """Return nothing: it is here."""
        return ()

    def cut(self) -> None:
        """Be a black hole."""
        self.to_database.swallow()
        self.to_cache.swallow()

    def mend(self) -> None:
        """Pass everything on."""
        self.to_database.mend()
        self.to_cache.mend()


@dataclass
class Hosts:
    """Three hosts and the database they share."""

    database: servers.MariaDB
    hosts: Sequence[Host]
    environment: dict[str, str]
    """Of a command on this machine, which no cut concerns."""


def run(*command: str) -> None:
    """Run ``command``; fail with what it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)


@cache
def namespaces_can_be_made() -> bool:
    """Tell whether this machine lets us make networks."""
    if not all(shutil.which(program) for program in PROGRAMS):
        return False
    wire = f"t{os.getpid()}probe"
    attempt = f"ip link add {wire} type veth peer name wire && hostname probe"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "sh", "-c", attempt], capture_output=True, check=False
    )
    return tried.returncode == 0


@contextmanager
def in_namespaces(count: int) -> Iterator[Hosts]:
    """Run hosts with networks of their own, one database and one Redis."""
    with ExitStack() as stack:
        hosts = [NamespaceHost(f"host-{number}", number) for number in range(count)]
        for host in hosts:
            stack.callback(host.remove)
        gateways = [host.gateway for host in hosts]
        database = stack.enter_context(servers.mariadb(also_on=gateways))
        cache_server = stack.enter_context(servers.redis(also_on=gateways))
        own = {"DATABASE_URL": database.url, "REDIS_URL": cache_server.url}
        for host in hosts:
            host.environment = {
                name: url.replace("127.0.0.1", host.gateway) for name, url in own.items()
            }
        yield Hosts(database, hosts, own)


@contextmanager
def in_groups(count: int) -> Iterator[Hosts]:
    """Run hosts with a Redis of their own each, and one database."""
    with ExitStack() as stack:
        database = stack.enter_context(servers.mariadb())
        caches = [stack.enter_context(servers.redis()) for _ in range(count)]
        hosts = []
        for cache_server in caches:
            to_database = stack.enter_context(Proxy(database.port))
            to_cache = stack.enter_context(Proxy(cache_server.port))
            environment = {
                "DATABASE_URL": to_database.url(database.url),
                "REDIS_URL": to_cache.url(cache_server.url),
            }
            hosts.append(GroupHost(to_database, to_cache, environment))
        own = {"DATABASE_URL": database.url, "REDIS_URL": caches[0].url}
        yield Hosts(database, hosts, own)
