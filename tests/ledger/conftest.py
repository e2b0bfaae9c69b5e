"""Time enough for a slow machine."""

from tests.patience import unhurried

__all__ = ["unhurried"]
