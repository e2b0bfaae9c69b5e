"""Wait for a condition instead of sleeping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 120.0
POLL_S = 0.02


def eventually(condition: Callable[[], T], *, deadline_s: float = DEADLINE_S) -> T:
    """Return the first true value of ``condition``; fail with its last value or error."""
    deadline = time.monotonic() + deadline_s
    while True:
        last: object
        try:
            value = condition()
        except AssertionError as error:
            last = error
        else:
            if value:
                return value
            last = value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {deadline_s:g} s; the last value was {last!r}")
        time.sleep(POLL_S)
