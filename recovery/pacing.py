"""How many rows a batch takes: fewer after one that took long, more after one that was quick."""

QUICK = 4
"""A batch that took less than this part of the longest time was quick."""


def next_size(size: int, took_s: float, *, least: int, most: int, longest_s: float) -> int:
    """Return how many rows to take after ``size`` of them took ``took_s`` seconds.

    Half as many after more than ``longest_s``, twice as many after less than a quarter of it.
    """
    if took_s > longest_s:
        return min(most, max(least, size // 2))
    return min(most, size * 2) if took_s < longest_s / QUICK else size
