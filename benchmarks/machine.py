"""What the machine does meanwhile, as Linux counts it: processor time and memory of processes."""

import os
import resource
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
UTIME, STIME, PARENT = 11, 12, 1  # of /proc/PID/stat behind the name


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_s(pid: int) -> float:
    """Return the processor time a process used so far, its children's left out; 0: it is gone."""
    with suppress(OSError):
        stat = _stat(pid)
        return (int(stat[UTIME]) + int(stat[STIME])) / TICKS_A_SECOND
    return 0.0


def family(pid: int) -> list[int]:
    """Return a process and its descendants, the parents first, siblings in order of their ids."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents.setdefault(int(_stat(int(entry.name))[PARENT]), []).append(int(entry.name))
    found, rest = [pid], [pid]
    while rest:
        children = sorted(parents.get(rest.pop(0), []))
        found += children
        rest += children
    return found


def memory_mib(pid: int) -> tuple[float, float]:
    """Return a process's resident memory: its share of it (PSS), and all it maps (RSS)."""
    sizes = {"Pss:": 0.0, "Rss:": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) / 1024
    return sizes["Pss:"], sizes["Rss:"]


def server_pid(program: str, port: int) -> int | None:
    """Return the server that was started with this port in its command line."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            on_port = f"--port={port}" in words or f":{port}" in " ".join(words)
            if entry.name.isdigit() and Path(words[0]).name == program and on_port:
                return int(entry.name)
    return None


def _machine_ticks() -> tuple[int, int]:
    """Return the ticks of all processors since the start, and those of them that were idle."""
    with Path("/proc/stat").open() as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]  # idle, and waiting for a disk


@dataclass
class Meter:
    """How busy the machine and some processes were between ``start`` and ``stop``."""

    pids: Iterable[int] = ()
    wall_s: float = 0.0
    busy: float = 0.0
    """The share of all processors that was not idle."""
    used_s: dict[int, float] = field(default_factory=dict)

    def start(self) -> "Meter":
        """Begin to measure."""
        self._started = time.perf_counter()
        self._ticks = _machine_ticks()
        self._cpu = {pid: cpu_s(pid) for pid in self.pids}
        return self

    def stop(self) -> "Meter":
        """Keep what was used since the start."""
        self.wall_s = time.perf_counter() - self._started
        total, idle = (now - then for now, then in zip(_machine_ticks(), self._ticks, strict=True))
        # A machine that is itself a guest may have its idle ticks corrected.
        self.busy = min(max(1 - idle / total, 0.0), 1.0) if total else 0.0
        self.used_s = {pid: cpu_s(pid) - before for pid, before in self._cpu.items()}
        return self


def own_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


class Others:
    """What share of the processors others took: neither we, our children nor the servers."""

    def __init__(self, servers: Iterable[int]) -> None:
        """Begin to measure."""
        self._meter = Meter([*servers]).start()
        self._own = own_s()

    def share(self) -> float:
        """Return their share since the start."""
        meter = self._meter.stop()
        ours = own_s() - self._own + sum(meter.used_s.values())
        return max(0.0, meter.busy - ours / (meter.wall_s * cores()))
