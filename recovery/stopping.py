"""Whether this process and its siblings were asked to stop."""

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
