"""Hosts whose clock is wrong: the environment of processes under libfaketime."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path

from tests.servers import ServerError

SLOW = "-90s"
FAST = "+2h"
JUMPING = "jumping"
CLOCKS = (SLOW, FAST, JUMPING)
JUMPS_EVERY_S = 0.2
WRONG_BY_S = 60
"""Each of these clocks is wrong by more than this at any moment."""
_SHARED = Path("/dev/shm")
_SITE = Path(__file__).parent / "faketime"


@contextmanager
def wrong(clock: str, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of processes with this clock; ``folder`` is for one that jumps."""
    _sweep()
    file = folder / f"clock{clock}"
    _set(file, FAST if clock == JUMPING else clock)
    done = threading.Event()
    thread = threading.Thread(target=_jump, args=(file, done), daemon=True)
    if clock == JUMPING:
        thread.start()
    try:
        yield {
            "LD_PRELOAD": str(library()),
            "PYTHONPATH": str(_SITE),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    finally:
        done.set()
        if clock == JUMPING:
            thread.join()
        _sweep()


def library() -> Path:
    """Return the path of libfaketime; raise ServerError that says what to install."""
    for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1"):
        return path
    raise ServerError("libfaketime is not installed: apt-get install faketime (or `make setup`)")


def _sweep() -> None:
    """Remove what libfaketime shared with processes that were killed: their ids come again."""
    for path in _SHARED.glob("*faketime_s*_*"):
        if not Path(f"/proc/{path.name.rpartition('_')[2]}").exists():
            with suppress(OSError):  # another user's, or just gone
                path.unlink()


def _jump(file: Path, done: threading.Event) -> None:
    for offset in cycle((SLOW, FAST)):
        _set(file, offset)
        if done.wait(JUMPS_EVERY_S):
            return


def _set(file: Path, offset: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(f"{offset}\n")
    new.replace(file)  # never empty, whenever it is read
