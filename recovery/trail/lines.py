"""An audit record as one line: the form that is hashed, archived and exported."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import reduce
from hashlib import sha256
from itertools import islice
from operator import or_
from typing import Any
from uuid import UUID

from django.db.models import Q

from recovery.models import AuditEntry, AuditRecord
from recovery.models.seals import Span

COLUMNS = ("id", "at", *AuditEntry.CONTENT)
TEXTS = ("actor", "action", "target_type", "target_id", "reason")
MARK_BYTES = 8
"""So much of a line's hash is kept: it tells which line was changed."""
SPANS_AT_ONCE = 100


def line_of(row: Iterable[Any]) -> bytes:
    """Return the line of the values of ``COLUMNS``, with its end.

    JSON in ASCII, without spaces; keys of the record in this order, those within it sorted; times
    in UTC with six decimals. So it is the same whatever database the record came from.
    """
    values = dict(zip(COLUMNS, row, strict=True))
    values["at"] = moment_text(values["at"])
    values["run_id"] = str(values["run_id"]) if values["run_id"] else None
    for name in ("before", "after", "evidence"):
        values[name] = _sorted(values[name])
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def _sorted(value: Any) -> Any:
    """Return JSON with the keys of its objects in order."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(it) for it in value] if isinstance(value, list) else value


def moment_text(moment: datetime) -> str:
    """Return a time as lines have it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def record_of(line: bytes) -> AuditRecord:
    """Return the record that a line is of; raise ValueError where it is none."""
    try:
        values = json.loads(line)
        values["at"] = datetime.fromisoformat(values["at"]).astimezone(UTC)
        values["run_id"] = UUID(values["run_id"]) if values["run_id"] else None
        record = AuditRecord(**values)
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not an audit record: {error}") from error
    if type(record.pk) is not int or not all(isinstance(values.get(it), str) for it in TEXTS):
        raise ValueError(f"not an audit record: {sorted(values)}")
    record._state.adding = False  # it was stored once, and is never stored again
    return record


def hash_of(line: bytes) -> str:
    """Return the SHA-256 of a line with its end, in hexadecimal."""
    return sha256(line).hexdigest()


def digest_of(hashes: Iterable[str]) -> str:
    """Return the SHA-256 of hashes, a line each."""
    return sha256("".join(f"{it}\n" for it in hashes).encode()).hexdigest()


def marks_of(hashes: Iterable[str]) -> bytes:
    """Return the beginnings of hashes, one behind the other."""
    return b"".join(bytes.fromhex(it[: 2 * MARK_BYTES]) for it in hashes)


def rows_of(spans: Iterable[Span]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table in ``spans``, in the order of their ids."""
    rows = AuditRecord.objects.order_by("pk").values_list(*COLUMNS)
    for wanted in in_parts(spans):
        yield from rows.filter(wanted)


def in_parts(spans: Iterable[Span]) -> Iterator[Q]:
    """Yield conditions that together are true of the ids in ``spans``, some spans at a time."""
    rest = iter(spans)
    while some := list(islice(rest, SPANS_AT_ONCE)):
        yield reduce(or_, (Q(pk__range=span) for span in some))
