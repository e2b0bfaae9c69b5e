"""Faults drawn from a seed and inflicted on an installation while it works."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field

import MySQLdb
import redis

from tests import servers
from tests.faults.checker import connect, query
from tests.faults.installation import Importer, Installation
from tests.faults.proxy import AtCommit

Cure = Callable[[], None]

PAUSES_S = (0.1, 1.0)
LONGEST_S = 6.0


@dataclass(frozen=True)
class Fault:
    """One kind of fault: what it hits (one at a time of each), and what inflicts it."""

    name: str
    target: str
    inflict: Callable[["Chaos"], Cure | None]
    weight: int = 1


@dataclass
class Chaos:
    """Breaks an installation; every choice comes from ``seed``."""

    installation: Installation
    faults: Sequence[Fault]
    seed: int
    importer: Importer | None = None
    injected: Counter[str] = field(default_factory=Counter)
    _cures: dict[str, tuple[float, Cure]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin the sequence of choices."""
        self.random = random.Random(self.seed)

    def rage(self, seconds: float, *, least: int = 0) -> None:
        """Break things for ``seconds`` and at ``least`` so many, then mend them all."""
        end = time.monotonic() + seconds
        while time.monotonic() < end or self.injected.total() < least:
            self._break_something()
            time.sleep(self.random.uniform(*PAUSES_S))
            self._mend(time.monotonic())
            self.installation.supervise()
        self._mend(float("inf"))
        self.installation.supervise()

    def _break_something(self) -> None:
        free = [fault for fault in self.faults if fault.target not in self._cures]
        if not free:
            return
        (fault,) = self.random.choices(free, [it.weight for it in free])
        lasts_s = self.random.uniform(0.2, LONGEST_S)
        cure = fault.inflict(self)
        self.injected[fault.name] += 1
        if cure:
            self._cures[fault.target] = (time.monotonic() + lasts_s, cure)

    def _mend(self, now: float) -> None:
        for target, (due, cure) in list(self._cures.items()):
            if due <= now:
                cure()
                del self._cures[target]

    def is_broken(self, target: str) -> bool:
        """Tell whether a fault of ``target`` waits for its cure."""
        return target in self._cures

    def any_cluster(self) -> int:
        """Return the index of a cluster."""
        return self.random.randrange(len(self.installation.clusters))

    def any_of(self, pids: Sequence[int]) -> int | None:
        """Return one of ``pids``, or None where there are none."""
        return self.random.choice(sorted(pids)) if pids else None


def kill(pid: int | None) -> None:
    """End a process as the kernel would."""
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _kill_worker(chaos: Chaos) -> None:
    cluster = chaos.installation.clusters[chaos.any_cluster()]
    kill(chaos.any_of(cluster.forked()))


def _kill_busy_worker(chaos: Chaos) -> None:
    """Kill a worker in the middle of a run, so far as the database tells."""
    if chaos.is_broken("database"):
        return _kill_worker(chaos)
    sql = (
        "SELECT pid FROM recovery_jobrun WHERE status = 'running'"
        " AND (job_id LIKE 'processLedgerOutbox%' OR job_id = 'finalizeRetryWorker')"
    )
    with suppress(MySQLdb.Error), closing(connect(chaos.installation.database.url)) as link:
        alive = {pid for it in chaos.installation.clusters for pid in it.forked()}
        kill(chaos.any_of([pid for (pid,) in query(link, sql) if pid in alive]))


def _kill_sentinel(chaos: Chaos) -> None:
    cluster = chaos.installation.clusters[chaos.any_cluster()]
    kill(chaos.any_of(cluster.children(cluster.parent)))


def _kill_pusher(chaos: Chaos) -> None:
    cluster = chaos.installation.clusters[chaos.any_cluster()]
    born_last = cluster.forked()[-1:]
    kill(chaos.any_of(born_last))


def _kill_parent(chaos: Chaos) -> None:
    kill(chaos.installation.clusters[chaos.any_cluster()].parent)


def _kill_cluster(chaos: Chaos) -> None:
    for pid in chaos.installation.clusters[chaos.any_cluster()].started.family():
        kill(pid)


def _kill_importer(chaos: Chaos) -> None:
    current = chaos.importer and chaos.importer.current
    if current:
        kill(current.pid)


def _stop(pids: Sequence[int]) -> Cure:
    """Freeze processes; the cure thaws them."""

    def send(signum: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    send(signal.SIGSTOP)
    return lambda: send(signal.SIGCONT)


def _stop_process(chaos: Chaos) -> Cure:
    cluster = chaos.installation.clusters[chaos.any_cluster()]
    pid = chaos.any_of(sorted(cluster.started.family()))
    return _stop([pid] if pid else [])


def _stop_cluster(chaos: Chaos) -> Cure:
    return _stop(sorted(chaos.installation.clusters[chaos.any_cluster()].started.family()))


def _kill_server(server: servers.Server) -> Cure:
    server.kill()
    return server.start


def _kill_database(chaos: Chaos) -> Cure:
    return _kill_server(chaos.installation.database)


def _pause_server(server: servers.Server) -> Cure:
    server.pause()
    return server.resume


def _pause_database(chaos: Chaos) -> Cure:
    return _pause_server(chaos.installation.database)


def _as_admin(chaos: Chaos, *statements: str) -> None:
    with closing(connect(chaos.installation.database.admin_url)) as link:
        for statement in statements:
            query(link, statement)


def _read_only(chaos: Chaos) -> Cure:
    _as_admin(chaos, "SET GLOBAL read_only = 1")
    return lambda: _as_admin(chaos, "SET GLOBAL read_only = 0")


def _kill_connections(chaos: Chaos) -> None:
    _as_admin(chaos, f"KILL USER {chaos.installation.database.user}")


def _cut_database(chaos: Chaos) -> None:
    chaos.installation.to_database.cut()


def _slow_database(chaos: Chaos) -> Cure:
    chaos.installation.to_database.delay_s = 0.02
    return chaos.installation.to_database.mend


def _swallow_database(chaos: Chaos) -> Cure:
    chaos.installation.to_database.swallow()
    return chaos.installation.to_database.mend


def _cut_commits(where: AtCommit) -> Callable[[Chaos], Cure]:
    def inflict(chaos: Chaos) -> Cure:
        chaos.installation.to_database.cut_commits(where, chaos.random.randint(1, 10))
        return chaos.installation.to_database.mend

    return inflict


def _kill_redis(chaos: Chaos) -> Cure:
    return _kill_server(chaos.installation.cache)


def _pause_redis(chaos: Chaos) -> Cure:
    return _pause_server(chaos.installation.cache)


def _replace_redis(chaos: Chaos) -> None:
    chaos.installation.cache.kill()
    chaos.installation.cache.start()


def _flush_redis(chaos: Chaos) -> None:
    redis.Redis.from_url(chaos.installation.cache.url).flushall()


def _refuse_redis(chaos: Chaos) -> Cure:
    chaos.installation.to_cache.refuse()
    return chaos.installation.to_cache.mend


def _answer(status: int) -> Callable[[Chaos], Cure]:
    def inflict(chaos: Chaos) -> Cure:
        chaos.installation.endpoint.status = status
        return lambda: setattr(chaos.installation.endpoint, "status", 204)

    return inflict


def _hang(chaos: Chaos) -> Cure:
    chaos.installation.endpoint.drip_s = 0.2
    return lambda: setattr(chaos.installation.endpoint, "drip_s", 0.0)


KILLS = (
    Fault("kill -9 of a worker, the monitor or the pusher", "processes", _kill_worker, 4),
    Fault("kill -9 of a busy worker", "processes", _kill_busy_worker, 4),
    Fault("kill -9 of a sentinel", "processes", _kill_sentinel),
    Fault("kill -9 of the youngest process of a cluster", "processes", _kill_pusher),
    Fault("kill -9 of a cluster's parent", "processes", _kill_parent),
    Fault("kill -9 of a whole cluster", "processes", _kill_cluster),
    Fault("kill -9 of the import", "processes", _kill_importer),
)
STOPS = (
    Fault("SIGSTOP of one process", "stopped", _stop_process, 4),
    Fault("SIGSTOP of a whole cluster", "stopped", _stop_cluster),
)
RESTARTS = (Fault("MariaDB killed and started again", "database", _kill_database),)
DATABASE = (
    *RESTARTS,
    Fault("MariaDB frozen", "database", _pause_database),
    Fault("MariaDB read-only", "database", _read_only),
    Fault("every connection killed by the server", "database", _kill_connections),
    Fault("every connection to MariaDB cut", "to database", _cut_database),
    Fault("each packet to MariaDB 20 ms late", "to database", _slow_database),
    Fault("black hole before MariaDB", "to database", _swallow_database),
    Fault("COMMITs that never arrive", "to database", _cut_commits(AtCommit.BEFORE), 2),
    Fault("COMMITs whose answer is lost", "to database", _cut_commits(AtCommit.AFTER), 3),
)
REDIS = (
    Fault("Redis killed and started again, empty", "redis", _kill_redis),
    Fault("Redis frozen", "redis", _pause_redis),
    Fault("Redis replaced by an empty one at once", "redis", _replace_redis),
    Fault("Redis flushed", "redis", _flush_redis),
    Fault("Redis refusing connections", "to redis", _refuse_redis),
)
ENDPOINT = (
    Fault("endpoint answering 503", "endpoint", _answer(503)),
    Fault("endpoint hanging", "endpoint", _hang),
)
ALL = (*KILLS, *STOPS, *DATABASE, *REDIS, *ENDPOINT)
