"""What is told of a part of a batch once it is committed: it is counted, and named in the log."""

import logging
from collections.abc import Iterator, Sequence

from ledger import metrics
from ledger.posting import Result

logger = logging.getLogger(__name__)

KEYS_A_RECORD, KEYS_CHARS = 500, 18_000
"""So many event keys, of so many characters in all, stand in one record of the log."""


def of(result: Result) -> None:
    """Count what was done, and name what was posted."""
    metrics.count(result)
    _name_posted(result)


def _name_posted(result: Result) -> None:
    """Say which entries were posted, so that an order is found in the log down to here."""
    if not logger.isEnabledFor(logging.INFO):
        return
    for keys in _lines_of([entry.event_key for entry in result.posted]):
        logger.info("entries_posted", extra={"event_keys": " ".join(keys), "entries": len(keys)})


def _lines_of(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield as many keys at a time as a record holds."""
    for start in range(0, len(keys), KEYS_A_RECORD):
        some = keys[start : start + KEYS_A_RECORD]
        longest = max(map(len, some)) + 1
        size = max(1, KEYS_CHARS // longest)
        for nth in range(0, len(some), size):
            yield some[nth : nth + size]
