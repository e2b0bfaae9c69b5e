"""The files in which processes count: read together, those of dead processes merged into one.

prometheus_client gives each process a file a metric type and never removes one. Here the files of
the dead are added up into ``<type>_merged.db``, so that nothing is lost and nothing grows.
"""

import fcntl
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from recovery.pids import may_live

logger = logging.getLogger(__name__)

LOCK = "lock"
JOURNAL = "journal.json"
MERGED = "merged"
SUMMED = ("counter", "histogram", "summary")
LOCK_PATIENCE_S = 2.0
LOOK_EVERY_S = 0.01
CROWD = 64
"""From so many files on, any process that starts merges those of the dead."""


class TalliesBusyError(TimeoutError):
    """Another process holds the directory of the counters and does not let go."""


def directory() -> Path | None:
    """Return where the processes of this host count; None: each in its own memory."""
    place = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(place) if place else None


def read(place: Path) -> list[Metric]:
    """Return what all processes counted, living and dead; raise TalliesBusyError."""
    with _locked(place):
        _merge_dead(place)
        files = [str(path) for path in _tallies(place) if _is_readable(path)]
        return list(MultiProcessCollector.merge(files))


def merge_dead(place: Path) -> int:
    """Merge the files of dead processes and return how many; raise TalliesBusyError."""
    with _locked(place):
        return _merge_dead(place)


def merge_a_crowd(place: Path) -> None:
    """Merge where files pile up though nobody scrapes and no cluster runs."""
    if sum(1 for _ in _tallies(place)) < CROWD:
        return
    try:
        merge_dead(place)
    except OSError as error:
        logger.warning("tallies_not_merged", extra={"error": str(error)})


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the directory against other readers and mergers, not against those who count."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    with (place / LOCK).open("a") as file:
        while not _try_lock(file.fileno()):
            if time.monotonic() >= deadline:
                raise TalliesBusyError(TalliesBusyError.__doc__)
            time.sleep(LOOK_EVERY_S)
        _finish(place)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _merge_dead(place: Path) -> int:
    """Add up the files of the dead, then name them in the journal: from there on it is done."""
    dead: defaultdict[str, list[Path]] = defaultdict(list)
    for path in _tallies(place):
        if not _is_alive(path):
            dead[path.name.partition("_")[0]].append(path)
    for kind in SUMMED:
        if dead[kind]:
            _write_sum(place / f"{kind}_{MERGED}.new", [_merged(place, kind), *dead[kind]])
    gone = [path.name for paths in dead.values() for path in paths]
    if gone:
        _write_journal(place, {"sums": [kind for kind in SUMMED if dead[kind]], "gone": gone})
        _finish(place)
    return len(gone)


def _merged(place: Path, kind: str) -> Path:
    return place / f"{kind}_{MERGED}.db"


def _write_sum(target: Path, sources: Iterable[Path]) -> None:
    sums: defaultdict[str, float] = defaultdict(float)
    for source in sources:
        if _is_readable(source):
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(source)):
                sums[key] += value
    target.unlink(missing_ok=True)
    written = MmapedDict(str(target))
    for key, value in sums.items():
        written.write_value(key, value, 0.0)
    written.close()


def _write_journal(place: Path, work: dict[str, list[str]]) -> None:
    draft = place / f"{JOURNAL}.new"
    draft.write_text(json.dumps(work))
    draft.replace(place / JOURNAL)


def _finish(place: Path) -> None:
    """Do what the journal says, again after a crash: the sums replace what they were made of."""
    journal = place / JOURNAL
    if not journal.exists():
        return
    work = json.loads(journal.read_text())
    for kind in work["sums"]:
        with suppress(FileNotFoundError):
            (place / f"{kind}_{MERGED}.new").replace(_merged(place, kind))
    for name in work["gone"]:
        (place / name).unlink(missing_ok=True)
    journal.unlink()


def _tallies(place: Path) -> Iterator[Path]:
    """Yield the files of processes and, for a reader, the sums of the dead."""
    return place.glob("*_*.db")


def _is_readable(path: Path) -> bool:
    """Tell whether the file was begun; its process may have been killed before."""
    try:
        with path.open("rb") as file:
            return any(file.read(4))
    except FileNotFoundError:
        return False


def _is_alive(path: Path) -> bool:
    owner = path.stem.rpartition("_")[2]
    if owner == MERGED:
        return True
    pid = owner.partition("-")[0]
    return pid.isdecimal() and may_live(int(pid))
