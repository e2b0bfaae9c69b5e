"""Where processes count: a file each in one directory a host, so that one scrape sees them all."""

import fcntl
import logging
import mmap
import os
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from prometheus_client import mmap_dict

logger = logging.getLogger(__name__)

ROOM = 1 << 14
"""Bytes a file begins with; one that is full becomes twice as large."""
LOOK_EVERY_S = 5.0
"""How often a process looks whether its files are still there."""
BEGUN = 8
"""Bytes of a file in which nothing is counted yet: how many are used, and padding."""
UNFINISHED = ".new"


class Owner:
    """Which process counts, and whether what it counts can be seen."""

    def __init__(self) -> None:
        """Own nothing yet."""
        self.pid = 0
        self.name = ""
        self.files: dict[Path, int] = {}
        """The number of the inode, by path."""
        self.unseen = self.told = False
        """Something is counted in memory alone; and the log says so."""
        self.look_at = 0.0

    def begin(self, pid: int) -> None:
        """Count in new files from here on."""
        self.pid, self.name = pid, f"{pid}-{time.time_ns():x}"
        self.files, self.unseen = {}, False

    def keep(self, path: Path, descriptor: int) -> None:
        """Remember a file of ours."""
        if path.stem.endswith(self.name):
            self.files[path] = os.fstat(descriptor).st_ino
            self.told = False

    def is_lost(self, now: float) -> bool:
        """Tell whether a scrape misses what is counted: the disk was full, or a file is gone."""
        self.look_at = now + LOOK_EVERY_S
        return self.unseen or any(_inode(path) != number for path, number in self.files.items())


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


_owner = Owner()


def process_identity() -> str:
    """Return ``<pid>-<time of the first count>``: unlike a pid it is never used again.

    The library asks before every count, and begins new files where the answer is another one.
    """
    pid, now = os.getpid(), time.monotonic()
    if _owner.pid != pid or (now >= _owner.look_at and _owner.is_lost(now)):
        _owner.begin(pid)
        _owner.look_at = now + LOOK_EVERY_S
    return _owner.name


class OwnFile(mmap_dict.MmapedDict):
    """The file in which a process counts: locked while it lives, its room taken beforehand.

    By the lock a merger knows that the process lives; its number may be another's by now, or
    none that other containers know. Where a disk is full the mapping would kill the process
    (SIGBUS); so the room is taken first, and where there is none the process counts in memory, as
    it does where the directory is gone. Counting raises nothing.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        """Begin the file."""
        self._fname = filename
        self._positions: dict[str, int] = {}
        self._used, self._capacity = BEGUN, ROOM
        self._f: Any = None
        self._m: Any = None
        try:
            self._f, self._m = _begun(Path(filename))
        except OSError as error:
            self._count_in_memory(bytearray(ROOM), error)
            struct.pack_into("i", self._m, 0, BEGUN)

    def _init_value(self, key: str) -> None:
        """Add a value, in a larger file where this one is full."""
        while self._used + 2 * BEGUN + len(key.encode()) + 16 > self._capacity:
            self._grow(2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self, capacity: int) -> None:
        try:
            if self._f:
                _take_room(self._f.fileno(), capacity)
                self._m = mmap.mmap(self._f.fileno(), capacity)
        except OSError as error:
            self._count_in_memory(bytearray(self._m), error)
        if not self._f:
            self._m.extend(bytes(capacity - self._capacity))
        self._capacity = capacity

    def _count_in_memory(self, memory: bytearray, error: OSError) -> None:
        self.close()  # type: ignore[no-untyped-call]
        self._m, _owner.unseen = memory, True
        if not _owner.told:
            logger.warning("counters_unseen", extra={"error": str(error)})
        _owner.told = True


def _begun(path: Path) -> tuple[Any, mmap.mmap]:
    """Return the file at ``path``, open and mapped; it is locked before it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + UNFINISHED)
    file = draft.open("x+b")
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _take_room(file.fileno(), ROOM)
        mapped = mmap.mmap(file.fileno(), ROOM)
        struct.pack_into("i", mapped, 0, BEGUN)
        draft.replace(path)
    except OSError:
        file.close()
        draft.unlink(missing_ok=True)
        raise
    _owner.keep(path, file.fileno())
    return file, mapped


def _take_room(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def count_in(directory: Path) -> bool:
    """Let prometheus_client count in ``directory``; False where it cannot be written.

    Call it before anything makes a metric: the library decides then.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError:
        return count_alone()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    from prometheus_client import values

    values.MmapedDict = OwnFile  # type: ignore[attr-defined]
    values.ValueClass = values.MultiProcessValue(process_identity)
    return True


def count_alone() -> bool:
    """Let each process count in its own memory, whatever the environment says; return False."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(name, None)
    from prometheus_client import values

    values.ValueClass = values.MutexValue
    return False
