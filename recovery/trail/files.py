"""The files of archives: gzip of lines, the records of a seal and then the seal itself."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import IO, Any

from recovery.models import AuditRecord, AuditSeal
from recovery.models.seals import Span, span_text
from recovery.trail.lines import moment_text, record_of
from recovery.trail.stores import StoreError

SEAL_MARK = b'{"seal":'
LEVEL = 6
LONGEST_LINE = 64 << 20


class DamagedFileError(ValueError):
    """The file of an archive cannot be read to its end."""

    def __init__(self, text: str, *, after: bytes = b"") -> None:
        """Say where; ``after``: the last line that could be read."""
        super().__init__(text)
        self.after = after


def seal_line(seal: AuditSeal, spans: Iterable[Span]) -> bytes:
    """Return a seal as the line that ends its records in a file."""
    values = {
        "seal": seal.number,
        "previous": seal.previous,
        "day": f"{seal.day:%Y-%m-%d}",
        "at": moment_text(seal.at),
        "records": ",".join(map(span_text, spans)),
        "digest": seal.digest,
        "hash": seal.hash,
        "mac": seal.mac,
        "key": seal.key,
    }
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def writing(file: Any) -> gzip.GzipFile:
    """Return what compresses into ``file``; the same lines always make the same bytes."""
    return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=LEVEL, mtime=0)


def lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, those of seals too; raise DamagedFileError, StoreError."""
    line = b""
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            while line := unpacked.readline(LONGEST_LINE):
                if not line.endswith(b"\n"):
                    raise EOFError("its last line has no end")
                yield line
    except StoreError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFileError(f"{error}", after=line) from error


@dataclass
class Sealed:
    """A seal as a file has it, with the lines before it."""

    lines: list[bytes] = field(default_factory=list)
    seal: AuditSeal | None = None
    """None: the file ends without it."""
    records: str = ""

    def records_of(self) -> Iterator[AuditRecord]:
        """Yield the records of the lines that are of one."""
        for line in self.lines:
            with suppress(ValueError):
                yield record_of(line)


def sealed(file: IO[bytes]) -> Iterator[Sealed]:
    """Yield the seals of a file with their lines, one after the other; raise DamagedFileError."""
    part = Sealed()
    for line in lines(file):
        if not line.startswith(SEAL_MARK):
            part.lines.append(line)
            continue
        part.seal, part.records = _seal_of(line)
        yield part
        part = Sealed()
    if part.lines:
        yield part


def _seal_of(line: bytes) -> tuple[AuditSeal, str]:
    try:
        values = json.loads(line)
        seal = AuditSeal(
            number=int(values["seal"]),
            previous=values["previous"],
            day=date.fromisoformat(values["day"]),
            at=datetime.fromisoformat(values["at"]),
            digest=values["digest"],
            hash=values["hash"],
            mac=values["mac"],
            key=values["key"],
        )
        return seal, values["records"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"the line of a seal cannot be read: {error}", after=line) from error
