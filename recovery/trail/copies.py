"""Bring archived records back, as copies to be looked at, and away again."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from django.db import IntegrityError, transaction

from recovery import audit
from recovery.models import AuditRecord, RestoredRecord
from recovery.search import Search, archived_of
from recovery.trail.lines import COLUMNS, line_of

RESTORED = "audit-restored"
TARGET = "audit-archive"
MOST_RECORDS = 100_000
"""In one transaction, with their audit record."""
ROWS_AT_ONCE, BYTES_AT_ONCE = 500, 1 << 20
"""In one statement, or one row that has more: the server takes them up to max_allowed_packet."""


class TooManyError(Exception):
    """More records fit than are brought back at once: narrow the search."""

    def __init__(self) -> None:
        """Say what the class says, and how many."""
        super().__init__(f"{type(self).__doc__} The most are {MOST_RECORDS:,}.")


class UnreadableError(Exception):
    """A file that may have records could not be read, so nothing was brought back."""


class AtOnceError(Exception):
    """Somebody has just brought some of the same records back: try once more."""


def bring_back(search: Search, *, actor: str, reason: str) -> dict[str, int]:
    """Copy the archived records that fit into a table of their own, on the record.

    Returns how many were found, and how many of them were not there yet.
    Raises TooManyError, UnreadableError, AtOnceError.
    """
    try:
        return _brought(search, actor=actor, reason=reason)
    except IntegrityError as error:
        raise AtOnceError(AtOnceError.__doc__) from error


def _brought(search: Search, *, actor: str, reason: str) -> dict[str, int]:
    with transaction.atomic():
        archived = archived_of(search)
        archived.look()
        counts = {"found": 0, "brought": 0}
        for archive, some in groupby(_some(archived.above(None)), key=lambda it: it.archive):
            for rows in _in_parts(some):
                counts["found"] += len(rows)
                if counts["found"] > MOST_RECORDS:
                    raise TooManyError
                counts["brought"] += RestoredRecord.objects.bring(rows, archive)
        if archived.troubles:
            raise UnreadableError(f"{UnreadableError.__doc__} {archived.troubles[0]}")
        if counts["brought"]:
            _tell(actor, reason, after=counts, evidence=_told(search))
    return counts


def _some(found: Iterator[AuditRecord]) -> Iterator[Any]:
    yield from found


def _in_parts(records: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield as many records as one statement stores."""
    part: list[Any] = []
    size = 0
    for record in records:
        more = len(line_of((record.pk, *(getattr(record, name) for name in COLUMNS[1:]))))
        if part and (len(part) == ROWS_AT_ONCE or size + more > BYTES_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(record)
        size += more
    if part:
        yield part


def _told(search: Search) -> dict[str, Any]:
    given = {name: value for name, value in vars(search).items() if value}
    return {name: value if value is True else str(value) for name, value in given.items()}


def take_away(*, actor: str, reason: str) -> int:
    """Delete all copies, on the record; return how many there were."""
    with transaction.atomic():
        count, _by_model = RestoredRecord.objects.all().delete()
        if count:
            _tell(actor, reason, before={"copies": count}, after={"copies": 0})
    return count


def _tell(actor: str, reason: str, **facts: Any) -> None:
    audit.record(
        actor=actor, action=RESTORED, target_type=TARGET, target_id="*", reason=reason, **facts
    )
