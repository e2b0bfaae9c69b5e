"""Entries posted a second: ours by one worker and by two, beside the driver and one task each."""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.conf import settings
from django.test.utils import override_settings

from benchmarks import database, entries, floor, machine, processes, serverside
from benchmarks.options import Options
from benchmarks.processes import Child
from benchmarks.report import Bar, Row, Table, at_least, interleaved, ratio
from ledger.models import OutboxEntry
from recovery.runner import run_job

JOB = "processLedgerOutbox"
DRIVER, TWO_DRIVERS, SERVER = (
    "bare driver",
    "two bare drivers",
    "the server alone: INSERT ... SELECT",
)
ONE, TWO, BAD = "ours, one worker", "ours, two drains", "ours, one worker, every tenth refused"
PEERS = {
    "django-q2": ["-m", "benchmarks.peers.q2"],
    "Celery": ["-m", "benchmarks.peers.celeryapp"],
}
PEER_ROUNDS = 3
SATURATED = 0.9
LEAST_SHARE, LEAST_TIMES, LEAST_GAIN, LEAST_SPEED = 0.85, 20.0, 1.6, 0.75

Samples = dict[str, list[float]]


def measure(options: Options) -> Table:
    """Measure all contenders in each round, and the peers in rounds of their own."""
    entries.make_templates(options.entries)
    entries.make_accounts()
    pair = Pair(options.entries)
    contenders: dict[str, Callable[[], float]] = {
        DRIVER: partial(_alone, options.entries, lambda: floor.drain(settings.DATABASE_URL)),
        ONE: partial(_alone, options.entries, _guarded_runs),
        SERVER: partial(_alone, options.entries, lambda: serverside.drain(settings.DATABASE_URL)),
        BAD: partial(_refusing, options.entries),
        TWO_DRIVERS: pair.drivers,
        TWO: pair.drains,
    }
    contenders[ONE]()  # code, caches and buffers are warm
    found = interleaved(contenders, options.rounds)
    peers = interleaved(_peers(options.tasks), min(options.rounds, PEER_ROUNDS))
    return _table(options, found, peers, pair)


def _alone(count: int, drain: Callable[[], object]) -> float:
    """Return entries a second of one drain in this process."""
    entries.copy_templates()
    return _rate(count, drain)


def _refusing(count: int) -> float:
    """Return entries a second, refused ones included; those are not tried twice."""
    entries.copy_templates(bad=True)
    with override_settings(JOB_BACKOFF_BASE_SEC=settings.JOB_BACKOFF_CAP_SEC):
        return _rate(count, _guarded_runs)


def _guarded_runs() -> None:
    """Post by guarded runs: lock, lease, heartbeat, record."""
    while OutboxEntry.objects.due().exists():
        run_job(JOB)


def _rate(count: int, action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return count / (time.perf_counter() - started)


@dataclass
class Pair:
    """Two processes that post at the same time, and how busy the machine is meanwhile."""

    entries: int
    busy: list[float] = field(default_factory=list)
    clients: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)

    def drivers(self) -> float:
        """Return entries a second of two bare drivers."""
        return self._rate([Child("benchmarks.children.driver") for _ in range(2)])

    def drains(self) -> float:
        """Return entries a second of two of our drains; keep what they used."""
        env = {"JOB_OUTBOX_DRAINS": "2"}
        lanes = (JOB, f"{JOB}:2")
        children = [Child("benchmarks.children.drainer", lane, env=env) for lane in lanes]
        return self._rate(children, keep=True)

    def _rate(self, children: Sequence[Child], *, keep: bool = False) -> float:
        entries.copy_templates()
        for child in children:
            child.ready()
        servers = database.server_pids()
        meter = machine.Meter(servers.values()).start()
        results = processes.run_together(children)
        meter.stop()
        if keep:
            self._keep(meter, results)
        # As each child saw it: the last one to end, its own start and end left out.
        return self.entries / max(result["wall_s"] for result in results)

    def _keep(self, meter: machine.Meter, results: Sequence[dict[str, Any]]) -> None:
        share = 1 / (meter.wall_s * machine.cores())
        self.busy.append(meter.busy)
        self.clients.append(sum(result["cpu_s"] for result in results) * share)
        self.server.append(sum(meter.used_s.values()) * share)

    def saturation(self) -> str:
        """Return that the machine is saturated; empty where it is not."""
        busy, clients, server = map(statistics.median, (self.busy, self.clients, self.server))
        text = (
            f"machine saturated: {busy:.0%} of {machine.cores()} cores busy,"
            f" {clients + server:.0%} with this"
        )
        return text if busy >= SATURATED else ""

    def text(self) -> str:
        """Return how busy the machine was."""
        busy, clients, server = map(statistics.median, (self.busy, self.clients, self.server))
        return (
            f"with two drains {busy:.0%} of {machine.cores()} cores were busy:"
            f" the drains {clients:.0%}, MariaDB {server:.0%}"
        )


def _peers(tasks: int) -> dict[str, Callable[[], float]]:
    """Return the contenders with a task an entry that there are, by one worker and by two."""
    return {
        _peer_name(peer, workers): partial(_task_each, PEERS[peer], workers, tasks)
        for peer in PEERS
        if peer != "Celery" or importlib.util.find_spec("celery")
        for workers in (1, 2)
    }


def _peer_name(peer: str, workers: int) -> str:
    return f"a {peer} task each, {'one worker' if workers == 1 else 'two workers'}"


def _task_each(command: Sequence[str], workers: int, tasks: int) -> float:
    """Return entries a second from the first one posted to the last: the start does not count.

    The tasks are queued before the workers start, so that nothing slows them down.
    """
    entries.copy_templates(limit=tasks)
    env = os.environ | {
        "DJANGO_SETTINGS_MODULE": "benchmarks.peers.settings",
        "QCLUSTER_WORKERS": str(workers),
    }
    with processes.running([*command, str(workers)], env) as program:
        pending = OutboxEntry.objects.pending()
        processes.wait_until(lambda: program.runs() and pending.count() < tasks, "the first task")
        left = pending.count()
        return _rate(left, lambda: processes.wait_until(lambda: not pending.exists(), "the tasks"))


def _table(options: Options, found: Samples, peers: Samples, pair: Pair) -> Table:
    few = min(options.rounds, PEER_ROUNDS)
    title = (
        f"entries posted a second, 3 to 5 postings each ({options.rounds} rounds of"
        f" {options.entries:,}; a task each: {few} of {options.tasks:,})"
    )
    table = Table("drain", title, "/s", floor=f"the {DRIVER}")
    table.rows = [Row(name, it, found[DRIVER]) for name, it in (found | peers).items()]
    table.bars = [*_own_bars(found, pair), *_peer_bars(found, peers)]
    drivers = ratio(found[TWO_DRIVERS], found[DRIVER])
    table.notes = [f"two bare drivers do {drivers:.2f} times what one does", pair.text()]
    if len(peers) < 2 * len(PEERS):
        table.notes.append("Celery is not installed here; `make bench` brings it")
    return table


def _own_bars(found: Samples, pair: Pair) -> list[Bar]:
    claim = f"one worker at least {LEAST_SHARE} of the bare driver"
    gain = f"two drains at least {LEAST_GAIN} times one worker, or the machine saturated"
    refusing = f"every tenth entry refused: at least {LEAST_SPEED} of the speed"
    busy = pair.saturation()
    return [
        at_least(claim, ratio(found[ONE], found[DRIVER]), LEAST_SHARE),
        at_least(gain, ratio(found[TWO], found[ONE]), LEAST_GAIN, excuse=busy),
        at_least(refusing, ratio(found[BAD], found[ONE]), LEAST_SPEED),
    ]


def _peer_bars(found: Samples, peers: Samples) -> Iterator[Bar]:
    for mine, workers, word in ((ONE, 1, "one worker"), (TWO, 2, "two drains")):
        names = [_peer_name(peer, workers) for peer in PEERS]
        best = max((peers[name] for name in names if name in peers), key=statistics.median)
        times = statistics.median(found[mine]) / statistics.median(best)
        claim = f"{word} at least {LEAST_TIMES:g} times the best with a task each"
        yield at_least(claim, times, LEAST_TIMES)
