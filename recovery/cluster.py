"""django-q2's cluster, guarded: it ticks every second and leaves no orphans."""

import logging
import os
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any

from django.db import DatabaseError, InterfaceError, close_old_connections, connections
from django_q.brokers import get_broker
from django_q.cluster import Cluster, Sentinel, get_mp_context
from django_q.conf import Conf
from django_q.worker import worker

from recovery import schedules, stopping, tallies
from recovery.orphans import die_with_parent
from recovery.probing import missing_migrations, probe_connection
from recovery.sideport import SidePort

logger = logging.getLogger(__name__)

TICK_S = 1.0
TICK_OFFSET_S = 0.02
MEND_EVERY_S = 60.0
GRACE_S = 30.0
RESTARTS = 5
RESTART_WINDOW_S = 60.0
HUNG_AFTER_S = 30.0
QUEUE_LOST = 70

# When the sentinel last went round; the parent reads it.
_guarded_at = RawValue("d", 0.0)


class StopFlag(stopping.Flag):
    """A flag that is also set once the process that made it is gone."""

    def __init__(self) -> None:
        """Watch the process that makes it."""
        super().__init__()
        self.parent = os.getpid()

    def is_set(self) -> bool:
        """Tell whether to stop."""
        return super().is_set() or os.getpid() != self.parent != os.getppid()

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the flag; tell whether to stop.

        The sentinel waits here once in each round: what shows that it does not hang.
        """
        _guarded_at.value = time.monotonic()
        asked = super().wait(timeout)
        if asked:
            stopping.ask()  # the workers too, where the parent could not
        return asked


class GuardedSentinel(Sentinel):  # type: ignore[misc]
    """A sentinel in a process group of its own: it ends with its parent, its workers with it."""

    def start(self) -> None:
        """Lead a process group (the parent can end it whole), then guard the workers."""
        os.setpgid(0, 0)
        super().start()

    def spawn_process(self, target: Callable[..., None], *args: Any) -> Any:
        """Fork a process, as django-q2 does; the kernel kills it once this sentinel is dead.

        The parent cannot where it dies at the same moment.
        """
        process = get_mp_context().Process(
            target=_leashed,
            args=(die_with_parent(), target, *args),
            name=f"Process-{uuid.uuid4().hex}",
            daemon=Conf.DAEMONIZE_WORKERS if target is worker else True,
        )
        if target is worker:
            process.timer = args[2]
            self.pool.append(process)
        process.start()
        return process

    def reincarnate(self, process: Any) -> None:
        """Replace a dead process; give up where it may have taken a queue's lock along.

        An idle worker waits inside ``Queue.get`` with the reading lock held: killed there,
        it leaves a queue that nobody can read any more.
        """
        killed = process.exitcode is not None and process.exitcode < 0
        idle = process in self.pool and process.timer.value == -1
        if killed and (idle or process in (self.monitor, self.pusher)):
            facts = {"killed_pid": process.pid, "signal": -process.exitcode}
            logger.critical("queue_lost", extra=facts)
            os._exit(QUEUE_LOST)
        super().reincarnate(process)


def _leashed(ask_kernel: Callable[[], None], target: Callable[..., None], *args: Any) -> None:
    ask_kernel()
    target(*args)


class GuardedCluster(Cluster):  # type: ignore[misc]
    """A cluster whose parent process ticks, restarts a dead sentinel and kills its orphans."""

    def __init__(self, sideport: SidePort | None = None) -> None:
        """Make a cluster; nothing is started yet."""
        super().__init__()
        self.sideport = sideport
        self.ticker = schedules.Ticker(get_broker())
        self.stopped_by = ""
        self.restarts = 0
        self._deaths: deque[float] = deque(maxlen=RESTARTS)
        self._mended_at = 0.0
        self._database_down = self._unmerged = False

    def start(self) -> int:
        """Fork the sentinel and wait until it guards."""
        connections.close_all()  # a forked copy that is closed would close ours
        self.stop_event, self.start_event = StopFlag(), stopping.Flag()
        _guarded_at.value = time.monotonic()
        self.sentinel = get_mp_context().Process(
            target=GuardedSentinel,
            args=(self.stop_event, self.start_event, self.cluster_id, self.broker, self.timeout),
        )
        self.sentinel.start()
        while not self.start_event.is_set() and self._guarded():
            time.sleep(0.05)
        return int(self.pid)

    def sig_handler(self, signum: int, _frame: FrameType | None) -> None:
        """Ask for a stop; the second signal ends everything at once."""
        if self.stopped_by:
            self._kill_group()
            if self.sideport:
                self.sideport.stop()
            os._exit(1)
        self.stopped_by = signal.Signals(signum).name
        stopping.ask()

    def serve(self) -> int:
        """Tick until a stop is asked for; return the exit status."""
        self._wait_for_migrations()
        if not self.stopped_by:
            self.start()
            logger.info("cluster_started", extra={"sentinel_pid": self.sentinel.pid})
        while not self.stopped_by:
            if not self._guarded() and not self._restart():
                return 1
            if self.sideport:
                self.sideport.keep()
            self._tick()
            self._merge_tallies()
            self._sleep_until_next_second()
        return self._finish()

    def _wait_for_migrations(self) -> None:
        """Fork no worker on a schema that is older than this code.

        What it lacks would fail each of its runs. Once it lacks something, a database that does
        not answer in time is no reason to begin.
        """
        awaited: list[str] = []
        while not self.stopped_by:
            missing = _missing_migrations()
            if missing == [] or (missing is None and not awaited):
                return
            if missing and not awaited:
                facts = {"missing": len(missing), "first": missing[0]}
                logger.warning("migrations_awaited", extra=facts)
            awaited = missing or awaited
            if self.sideport:
                self.sideport.keep()
            self._sleep_until_next_second()

    def _guarded(self) -> bool:
        """Tell whether the sentinel lives and goes round.

        It hangs for ever where a worker was killed with the lock of its timer held.
        """
        hung = time.monotonic() - _guarded_at.value >= HUNG_AFTER_S
        return bool(self.sentinel.is_alive()) and not hung

    def _restart(self) -> bool:
        logger.critical("sentinel_died", extra={"exitcode": self.sentinel.exitcode})
        self._kill_group()
        now = time.monotonic()
        if len(self._deaths) == RESTARTS and now - self._deaths[0] < RESTART_WINDOW_S:
            logger.critical("cluster_gives_up", extra={"deaths": RESTARTS})
            return False
        self._deaths.append(now)
        self.restarts += 1
        self.start()
        return True

    def _tick(self) -> None:
        try:
            close_old_connections()
            self._mend_now_and_then()
            self.ticker.tick()
        except (DatabaseError, InterfaceError) as error:
            if not self._database_down:
                logger.warning("tick_without_database", extra={"error": str(error)})
            self._database_down = True
            close_old_connections()
            return
        if self._database_down:
            logger.info("database_back")
        self._database_down = False

    def _mend_now_and_then(self) -> None:
        now = time.monotonic()
        if not self._mended_at or now - self._mended_at >= MEND_EVERY_S:
            schedules.mend()
            self._mended_at = now

    def _merge_tallies(self) -> None:
        """Merge the counters of dead workers each second, so that no scrape finds many."""
        place = tallies.directory()
        try:
            if place:
                tallies.merge_dead(place, patience_s=0)
        except tallies.TalliesBusyError:
            return  # somebody else merges or reads
        except OSError as error:
            if not self._unmerged:
                logger.warning("tallies_not_merged", extra={"error": str(error)})
            self._unmerged = True
            return
        self._unmerged = False

    @staticmethod
    def _sleep_until_next_second() -> None:
        time.sleep(TICK_S - (time.time() - TICK_OFFSET_S) % TICK_S)

    def _finish(self) -> int:
        logger.info("cluster_stopping", extra={"signal": self.stopped_by})
        if self.sentinel and self.sentinel.is_alive():
            self.stop_event.set()
            self.sentinel.join(GRACE_S)
        clean = not (self.sentinel and self.sentinel.is_alive())
        if not clean:
            logger.error("cluster_killed", extra={"grace_s": GRACE_S})
        self._kill_group()
        if self.sideport:
            self.sideport.stop()
        logger.info("cluster_stopped")
        return 0 if clean else 1

    def _kill_group(self) -> None:
        """Kill the sentinel, if there is one, and what it forked; its process group is its pid."""
        if self.sentinel is None:
            return
        try:
            os.killpg(self.sentinel.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
        self.sentinel.join(1)


def _missing_migrations() -> list[str] | None:
    """Return what the database lacks; None where it does not answer: ticks wait for it too."""
    try:
        with probe_connection() as probe:
            return missing_migrations(probe)
    except (DatabaseError, InterfaceError):
        return None
