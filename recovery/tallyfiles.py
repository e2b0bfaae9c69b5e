"""The files of prometheus_client in bulk: added up by the hundred, and written whole."""

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import add
from pathlib import Path

LENGTH = struct.Struct("=i")
PAGE_BYTES = 1 << 14
"""What a process counts seldom takes more: one call reads it."""
VALUE_BYTES = 16
HEAD_BYTES = 8
FIELDS = 4
"""Of a value: the length of its key, the key, the value, a time."""


class CorruptTallyError(ValueError):
    """The file does not have the form of counters: its host lost power while it was written."""


@dataclass
class _Layout:
    """The keys of a file in their order, and the sums of all files that have the same."""

    form: struct.Struct
    keys: tuple[bytes, ...]
    sums: list[float]

    def take(self, data: bytes) -> bool:
        """Add the values of a file; False: its keys are others."""
        fields = self.form.unpack_from(data, HEAD_BYTES)
        if fields[1::FIELDS] != self.keys:
            return False
        self.sums = list(map(add, self.sums, fields[2::FIELDS]))
        return True


def content(path: Path) -> bytes:
    """Return what is used of a file; empty: its process was killed before it began."""
    with path.open("rb", buffering=0) as file:
        head = file.read(PAGE_BYTES)
        used = LENGTH.unpack_from(head)[0] if len(head) >= LENGTH.size else 0
        if used > len(head):
            head += file.read(used - len(head))
    return head[:used] if used >= 0 else head


class Adder:
    """Adds up the values of files by key.

    Processes that one parent forked have the same keys in the same order: after the first of them
    a file takes some thirty microseconds.
    """

    def __init__(self) -> None:
        """Begin at nothing."""
        self._layouts: defaultdict[int, list[_Layout]] = defaultdict(list)

    def add(self, data: bytes) -> None:
        """Add the values of a file's content; raise CorruptTallyError before any is added."""
        if not data:
            return
        used = len(data)
        if used < HEAD_BYTES or used != LENGTH.unpack_from(data)[0]:
            raise CorruptTallyError
        known = self._layouts[used]
        if not any(layout.take(data) for layout in known):
            known.append(_layout_of(data, used))
            known[-1].take(data)

    def sums(self) -> dict[bytes, float]:
        """Return the sums by key."""
        found: defaultdict[bytes, float] = defaultdict(float)
        for layouts in self._layouts.values():
            for layout in layouts:
                for key, value in zip(layout.keys, layout.sums, strict=True):
                    found[key] += value
        return found


def _layout_of(data: bytes, used: int) -> _Layout:
    keys = tuple(_keys(data, used))
    form = "=" + "".join(f"i{len(key)}sdd" for key in keys)
    return _Layout(struct.Struct(form), keys, [0.0] * len(keys))


def _keys(data: bytes, used: int) -> Iterator[bytes]:
    """Yield the keys, each with the spaces that fill it up to a multiple of eight bytes."""
    position = HEAD_BYTES
    while position < used:
        begin = position + LENGTH.size
        length = LENGTH.unpack_from(data, position)[0] if begin <= used else 0
        end = begin + length + _padding(length)
        if length <= 0 or end + VALUE_BYTES > used or data[begin : begin + 1] != b"[":
            raise CorruptTallyError
        yield data[begin:end]
        position = end + VALUE_BYTES


def _padding(length: int) -> int:
    return HEAD_BYTES - (length + LENGTH.size) % HEAD_BYTES


def packed(sums: Mapping[bytes, float]) -> bytes:
    """Return the content of a file that holds ``sums``."""
    body = bytearray(HEAD_BYTES)
    for padded, value in sums.items():
        body += struct.pack(f"=i{len(padded)}sdd", len(padded.rstrip(b" ")), padded, value, 0.0)
    LENGTH.pack_into(body, 0, len(body))
    return bytes(body)
