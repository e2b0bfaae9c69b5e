"""What a cluster costs that has nothing to do: processor, statements, memory."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_q.brokers import get_broker

from benchmarks import machine, processes
from benchmarks.options import Options
from benchmarks.report import Row, Table
from benchmarks.sections.latency import embedded_env
from recovery.schedules import Ticker

SETTLE_S = 5
MINUTE_S = 60
TICKS = 3
PRODUCTION, EMBEDDED = "production mode", "embedded mode"


def measure(options: Options) -> Table:
    """Let a cluster of either mode idle at the same time; each is counted by itself."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as var,
        _embedded_cluster(embedded_env(var)) as embedded,
        processes.qcluster() as production,
    ):
        time.sleep(SETTLE_S)
        servers = _Servers()
        families = {PRODUCTION: _Family(production.pid), EMBEDDED: _Family(embedded)}
        time.sleep(options.idle_s)
        minutes = options.idle_s / MINUTE_S
        rows = [
            *servers.rows(minutes),
            *(row for mode, family in families.items() for row in family.rows(mode, minutes)),
        ]
    table = Table("idle", f"clusters with nothing to do for {options.idle_s} s", "", rows=rows)
    table.rows.append(Row(f"{PRODUCTION}: statements a tick, one a second", [_of_one_tick()]))
    table.notes = [
        f"{settings.Q_CLUSTER['workers']} workers each; memory in MiB, PSS: shared pages by share",
        f"Redis commands a minute: {servers.busiest(minutes)}",
        "embedded mode is on SQLite; both clusters idled at the same time",
    ]
    return table


@contextmanager
def _embedded_cluster(env: Mapping[str, str]) -> Iterator[int]:
    """Run a cluster in the embedded mode meanwhile; its process id."""
    command = [sys.executable, "manage.py", "migrate", "--verbosity=0"]
    subprocess.run(command, cwd=processes.ROOT, env=os.environ | env, check=True)
    with processes.qcluster(env) as program:
        yield program.pid


class _Servers:
    """How many statements and commands MariaDB and Redis were asked for since it was made."""

    def __init__(self) -> None:
        self._redis = redis.Redis.from_url(settings.REDIS_URL)
        self._commands = self._asked()
        self._questions = _questions()

    def _asked(self) -> dict[str, int]:
        found: Any = self._redis.info("commandstats")
        return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in found.items()}

    def rows(self, minutes: float) -> list[Row]:
        """Return what was asked for a minute; our own look at the end is not counted."""
        questions = _questions() - self._questions - 1
        now = self._asked()
        self.commands = {name: count - self._commands.get(name, 0) for name, count in now.items()}
        self.commands["info"] -= 1
        return [
            Row(f"{PRODUCTION}: MariaDB statements a minute", [questions / minutes]),
            Row(f"{PRODUCTION}: Redis commands a minute", [sum(self.commands.values()) / minutes]),
        ]

    def busiest(self, minutes: float) -> str:
        """Return the commands that were asked for most, by count."""
        most = sorted(self.commands.items(), key=lambda item: -item[1])[:5]
        return ", ".join(f"{name} {count / minutes:.0f}" for name, count in most if count)


def _questions() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
        return int(cursor.fetchone()[1])


class _Family:
    """The processes of a cluster, and what they used since it was made."""

    def __init__(self, pid: int) -> None:
        """Take the parent, the sentinel it started, and what that forked: workers come first."""
        self.pids = machine.family(pid)
        self._cpu = {pid: machine.cpu_s(pid) for pid in self.pids}

    def rows(self, mode: str, minutes: float) -> list[Row]:
        """Return processor time and memory of the cluster, and of its parts."""
        used = {pid: machine.cpu_s(pid) - before for pid, before in self._cpu.items()}
        memory = {pid: machine.memory_mib(pid) for pid in self.pids}
        parent, sentinel, *rest = self.pids
        workers = rest[: settings.Q_CLUSTER["workers"]]
        parts = {"parent": [parent], "sentinel": [sentinel], "each worker": workers}
        found = [
            Row(f"{mode}: processor seconds a minute", [sum(used.values()) / minutes]),
            Row(f"{mode}: memory, all {len(self.pids)} processes", [_pss(memory, self.pids)]),
        ]
        for part, pids in parts.items():
            rss = statistics.median(memory[pid][1] for pid in pids)
            cpu = sum(used[pid] for pid in pids) / minutes
            note = f"RSS {rss:.0f}; {cpu:.2f} processor seconds a minute"
            found.append(
                Row(f"{mode}: memory, {part}", [memory[pid][0] for pid in pids], note=note)
            )
        return found


def _pss(memory: Mapping[int, tuple[float, float]], pids: list[int]) -> float:
    return sum(memory[pid][0] for pid in pids)


def _of_one_tick() -> float:
    """Return the statements of a tick at which nothing is due: the fewest of a few."""
    ticker = Ticker(get_broker())
    found = []
    for _ in range(TICKS):
        with CaptureQueriesContext(connection) as queries:
            ticker.tick()
        found.append(len(queries))
    return float(min(found))
