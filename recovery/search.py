"""Search audit records, newest first: every search goes by an index and is read page by page."""

import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from recovery.models import AuditRecord

FIRST_PAGE, LARGEST_PAGE = 64, 1_024
"""Pages grow: most searches show a few records, others stream all there are."""
TICK = timedelta(milliseconds=1)
"""SQLite keeps times to the millisecond, and compares them as text."""

Records = QuerySet[AuditRecord]


class UnboundedError(ValueError):
    """A text alone is looked for in every record there is."""


@dataclass(frozen=True)
class Search:
    """What is looked for; what is not given does not matter."""

    since: datetime | None = None
    until: datetime | None = None
    """Records of this moment and later ones are left out."""
    actor: str = ""
    action: str = ""
    target: str = ""
    """``TYPE/ID``, or an ID of whatever type."""
    run_id: UUID | None = None
    text: str = ""
    """In the reason or in what was kept as JSON, in upper or lower case."""
    everything: bool = False
    """Look for a text in all records though nothing else narrows them down."""

    def narrows(self) -> bool:
        """Tell whether an index leads to a part of the records."""
        return bool(
            self.since or self.until or self.actor or self.action or self.target or self.run_id
        )


def find(search: Search) -> Iterator[AuditRecord]:
    """Yield the records that fit, the newest first, read as they are asked for.

    Raises UnboundedError.
    """
    if search.text and not (search.narrows() or search.everything):
        raise UnboundedError(UnboundedError.__doc__)
    found = _merged(search)
    return filter(partial(holds, text=search.text), found) if search.text else found


def holds(record: AuditRecord, text: str) -> bool:
    """Tell whether the record's reason or JSON has ``text`` in it, in upper or lower case."""
    wanted = text.casefold()
    if wanted in record.reason.casefold():
        return True
    quoted = json.dumps(wanted, ensure_ascii=False)[1:-1]
    parts = (record.before, record.after, record.evidence)
    kept = "\n".join(json.dumps(part, ensure_ascii=False) for part in parts).casefold()
    return wanted in kept or quoted in kept


def _merged(search: Search) -> Iterator[AuditRecord]:
    records = _filtered(search)
    if not search.target:
        return _by_time(records) if _only_times(search) else _by_id(records)
    found = (_by_id(records.filter(**target)) for target in targets(search.target))
    return heapq.merge(*found, key=lambda record: record.pk, reverse=True)


def _only_times(search: Search) -> bool:
    return bool(search.since or search.until) and not (
        search.actor or search.action or search.run_id
    )


def _filtered(search: Search) -> Records:
    wanted = {
        "at__gte": search.since,
        "at__lt": search.until,
        "actor": search.actor,
        "action": search.action,
        "run_id": search.run_id,
    }
    return AuditRecord.objects.filter(**{name: value for name, value in wanted.items() if value})


def targets(target: str) -> list[dict[str, str]]:
    """Return what ``TYPE/ID`` or ``ID`` may stand for: each a target by the index that has both.

    An ID may have a slash of its own: what stands before it is a type only if there is one.
    """
    types = list(_types())
    kind, slash, rest = target.partition("/")
    if slash and kind in types:
        return [{"target_type": kind, "target_id": rest}]
    return [{"target_type": name, "target_id": target} for name in types]


def _types() -> Iterator[str]:
    """Yield the types of targets there are: few, each found by one look into the index."""
    last = ""
    names = AuditRecord.objects.order_by("target_type").values_list("target_type", flat=True)
    while (found := names.filter(target_type__gt=last).first()) is not None:
        yield found
        last = found


def _by_id(records: Records) -> Iterator[AuditRecord]:
    ordered, size = records.order_by("-id"), FIRST_PAGE
    page = list(ordered[:size])
    while page:
        yield from page
        if len(page) < size:
            return
        size = min(2 * size, LARGEST_PAGE)
        page = list(ordered.filter(pk__lt=page[-1].pk)[:size])


def _by_time(records: Records) -> Iterator[AuditRecord]:
    """Yield by time, which is the order of the index on it."""
    ordered, size = records.order_by("-at", "-id"), FIRST_PAGE
    page = list(ordered[:size])
    seen: list[tuple[datetime, int]] = []
    while page:
        yield from page
        if len(page) < size:
            return
        size = min(2 * size, LARGEST_PAGE)
        # From the last one's moment on, less those of it that were yielded.
        until = page[-1].at + TICK
        seen = [it for it in seen + [(it.at, it.pk) for it in page] if it[0] <= until]
        known = {pk for _at, pk in seen}
        rest = ordered.filter(at__lt=until)[: size + len(known)]
        page = [record for record in rest if record.pk not in known]


def as_dict(record: AuditRecord) -> dict[str, Any]:
    """Return the record as ``audit search --json`` prints it."""
    return {
        "id": record.pk,
        "at": record.at.isoformat(),
        "actor": record.actor,
        "action": record.action,
        "target_type": record.target_type,
        "target_id": record.target_id,
        "reason": record.reason,
        "before": record.before,
        "after": record.after,
        "evidence": record.evidence,
        "run_id": str(record.run_id) if record.run_id else None,
    }
