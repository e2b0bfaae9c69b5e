"""Whether this process and its siblings were asked to stop."""

import time
from multiprocessing.sharedctypes import RawValue

# Shared with the workers through fork. Raw: no lock that a killed worker could take along.
_asked = RawValue("b", 0)


def ask() -> None:
    """Ask every run in this process and in those forked from it to end after its batch."""
    _asked.value = 1


def asked() -> bool:
    """Tell whether a stop was asked for."""
    return bool(_asked.value)


def withdraw() -> None:
    """Take the request back."""
    _asked.value = 0


class Flag:
    """An event shared by fork; without a lock that a killed process could take along."""

    LOOK_EVERY_S = 0.05

    def __init__(self) -> None:
        """Make it, not set."""
        self._set = RawValue("b", 0)

    def set(self) -> None:
        """Set it."""
        self._set.value = 1

    def is_set(self) -> bool:
        """Tell whether it is set."""
        return bool(self._set.value)

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until it is set; tell whether it is."""
        deadline = time.monotonic() + timeout
        while not self.is_set() and time.monotonic() < deadline:
            time.sleep(self.LOOK_EVERY_S)
        return self.is_set()
