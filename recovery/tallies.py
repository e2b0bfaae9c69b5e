"""The files in which processes count: read together, those of dead processes merged into one.

prometheus_client gives each process a file a metric type and never removes one. Here the files of
the dead are added up into ``<type>_merged.db``, so that nothing is lost and nothing grows. A
process holds a lock on its files while it lives (``settings.metrics``).
"""

import fcntl
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from recovery.tallyfiles import Adder, CorruptTallyError, content, packed

logger = logging.getLogger(__name__)

LOCK = "lock"
JOURNAL = "journal.json"
MERGED = "merged"
SUMMED = ("counter", "histogram", "summary")
LOCK_PATIENCE_S = 2.0
LOOK_EVERY_S = 0.01
CROWD = 64
"""From so many files on, any process that starts merges those of the dead."""
DRAFT_S = 60.0
"""A process that is not done with a draft after this was killed over it."""
REMOVED_AT_ONCE = 64
"""Of files that are merged: to remove one takes longer than to read it, and a scrape waits."""


class TalliesBusyError(TimeoutError):
    """Another process holds the directory of the counters and does not let go."""


def directory() -> Path | None:
    """Return where the processes of this host count; None: each in its own memory."""
    place = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(place) if place else None


def read(place: Path) -> list[Metric]:
    """Return what all processes counted, living and dead; raise TalliesBusyError."""
    with _locked(place) as done:
        done = _merged_if_possible(place, done)
        files = [str(path) for path in _tallies(place, done) if _is_readable(path)]
        return list(MultiProcessCollector.merge(files))


def merge_dead(place: Path, *, patience_s: float | None = None) -> int:
    """Merge the files of dead processes and return how many; raise TalliesBusyError."""
    with _locked(place, patience_s) as done:
        dead = _dead(place, done)
        _merge(place, dead, done)
        return len(dead)


def merge_a_crowd(place: Path) -> None:
    """Merge where files pile up though nobody scrapes and no cluster runs."""
    if sum(1 for _ in _tallies(place)) < CROWD:
        return
    try:
        merge_dead(place)
    except OSError as error:
        logger.warning("tallies_not_merged", extra={"error": str(error)})


@contextmanager
def _locked(place: Path, patience_s: float | None = None) -> Iterator[set[str]]:
    """Hold the directory against other readers and mergers, not against those who count.

    Yields the names of the files that are merged already and have still to be removed.
    """
    deadline = time.monotonic() + (LOCK_PATIENCE_S if patience_s is None else patience_s)
    place.mkdir(parents=True, exist_ok=True)
    # For reading, so that it does not matter whose file it is.
    lock = os.open(place / LOCK, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        while not _try_lock(lock):
            if time.monotonic() >= deadline:
                raise TalliesBusyError(TalliesBusyError.__doc__)
            time.sleep(LOOK_EVERY_S)
        yield _finish(place)
    finally:
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _merged_if_possible(place: Path, done: set[str]) -> set[str]:
    """Merge and return what has to be removed; on a full disk the dead are read as they lie."""
    try:
        return _merge(place, _dead(place, done), done)
    except OSError as error:
        logger.warning("tallies_not_merged", extra={"error": str(error)})
        return done


def _dead(place: Path, done: set[str]) -> list[Path]:
    return [path for path in _tallies(place, done) if not _is_alive(path)]


def _merge(place: Path, dead: Sequence[Path], done: set[str]) -> set[str]:
    """Add up the files of the dead, then name them in the journal: from there on it is done."""
    if not dead:
        return done
    by_kind: defaultdict[str, list[Path]] = defaultdict(list)
    for path in dead:
        by_kind[path.name.partition("_")[0]].append(path)
    kinds = [kind for kind in SUMMED if by_kind[kind]]
    for kind in kinds:
        _write(_draft_of(place, kind), _sum([_merged(place, kind), *by_kind[kind]]))
    gone = [*done, *(path.name for path in dead)]
    _write_journal(place, {"sums": kinds, "gone": gone})
    _drop_drafts(place)
    return _finish(place)


def _merged(place: Path, kind: str) -> Path:
    return place / f"{kind}_{MERGED}.db"


def _draft_of(place: Path, kind: str) -> Path:
    return place / f"{kind}_{MERGED}.new"


def _sum(sources: Iterable[Path]) -> bytes:
    adder = Adder()
    for source in sources:
        try:
            adder.add(content(source))
        except FileNotFoundError:
            continue
        except CorruptTallyError as error:
            facts = {"file": source.name, "error": str(error)}
            logger.warning("tally_corrupt", extra=facts)
    return packed(adder.sums())


def _write(target: Path, content: bytes) -> None:
    """Write by the file, not by a mapping: what has no room is an error, not a signal."""
    try:
        target.write_bytes(content)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def _write_journal(place: Path, work: dict[str, list[str]]) -> None:
    draft = place / f"{JOURNAL}.new"
    _write(draft, json.dumps(work).encode())
    draft.replace(place / JOURNAL)


def _finish(place: Path) -> set[str]:
    """Do what the journal says, again after a crash: the sums replace what they were made of.

    Returns the files that are left to be removed, a few each time.
    """
    journal = place / JOURNAL
    if not journal.exists():
        return set()
    work = json.loads(journal.read_text())
    for kind in work["sums"]:
        with suppress(FileNotFoundError):
            _draft_of(place, kind).replace(_merged(place, kind))
    _remove(place, work["gone"][:REMOVED_AT_ONCE])
    left = work["gone"][REMOVED_AT_ONCE:]
    try:
        if left:
            _write_journal(place, {"sums": [], "gone": left})
            return set(left)
    except OSError:  # the disk is full, which is what removing them mends
        _remove(place, left)
    journal.unlink()
    return set()


def _remove(place: Path, names: Iterable[str]) -> None:
    for name in names:
        (place / name).unlink(missing_ok=True)


def _drop_drafts(place: Path) -> None:
    """Remove what processes left that were killed before they had their file."""
    for path in place.glob("*_*.db.new"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > DRAFT_S:
                path.unlink()


def _tallies(place: Path, done: Collection[str] = ()) -> Iterator[Path]:
    """Yield the files of processes and the sums of the dead, but for those that are ``done``."""
    return (path for path in place.glob("*_*.db") if path.name not in done)


def _is_readable(path: Path) -> bool:
    """Tell whether the file is there, and ours to read: it may be another user's."""
    try:
        with path.open("rb") as file:
            return any(file.read(4))
    except (FileNotFoundError, PermissionError):
        return False


def _is_alive(path: Path) -> bool:
    """Tell whether its process lives: it holds the file's lock. The sums are of nobody."""
    if path.stem.rpartition("_")[2] == MERGED:
        return True
    try:
        with path.open("rb") as file:
            return not _try_lock(file.fileno())
    except (FileNotFoundError, PermissionError):
        return True
