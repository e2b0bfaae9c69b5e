"""Work that makes many objects and no cycles goes by without the collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_alone() -> Iterator[None]:
    """Keep Python's collector of cycles from running meanwhile, in all threads.

    A batch of thousands of rows makes it walk everything the process holds, again and again: a
    sixth of the processor's time, to find nothing. What has no cycles is freed all the same.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
