"""What was logged, as it would be written."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from settings.logs import Formatter

Line = dict[str, Any]


class _Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Line] = []
        self.setFormatter(Formatter(as_text=False, secrets=()))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@contextmanager
def kept(level: int = logging.INFO) -> Iterator[list[Line]]:
    """Yield the list to which each record's fields are added while the block runs."""
    keeper, root = _Keeper(), logging.getLogger()
    before = root.level
    root.addHandler(keeper)
    root.setLevel(level)
    try:
        yield keeper.lines
    finally:
        root.setLevel(before)
        root.removeHandler(keeper)


def named(lines: list[Line], event: str) -> Line:
    """Return the only line about ``event``."""
    (line,) = (it for it in lines if it["event"] == event)
    return line


def count_events(text: str) -> Counter[str]:
    """Return how often each event was logged in what a process printed; half a line is left."""
    lines = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    return Counter(json.loads(line)["event"] for line in lines)
