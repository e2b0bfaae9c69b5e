"""Search audit records, in the table by its indexes and in archives by their manifests."""

import heapq
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from recovery.models import AuditArchive, AuditRecord, AuditSeal
from recovery.trail.lines import line_of
from recovery.trail.reading import Archived, Key, Wanted, by_id, by_time, records_of, word
from recovery.trail.terms import term

FIRST_PAGE, LARGEST_PAGE = 64, 1_024
"""Pages grow: most searches show a few records, others stream all there are."""
TICK = timedelta(milliseconds=1)
"""SQLite keeps times to the millisecond, and compares them as text."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Records = QuerySet[AuditRecord]
Show = Callable[[Any], Any]
Look = Callable[[], None]
"""Called once a page was read, before its records are yielded."""


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
    below: Key | None = None
    """Go on from this place, as ``key`` names it: its record and those before it are left out."""
    shown: Show | None = None
    """Returns what of the JSON its reader may see: a text is not looked for in the rest."""

    @property
    def key(self) -> Callable[[AuditRecord], Key]:
        """Return what names the place of a record in the order of this search."""
        return by_time if _by_times(self) else by_id

    def narrows(self) -> bool:
        """Tell whether an index leads to a part of the records."""
        return bool(
            self.since or self.until or self.actor or self.action or self.target or self.run_id
        )


def find(search: Search, archived: Archived | None = None) -> Iterator[AuditRecord]:
    """Yield the records that fit, the newest first, read as they are asked for.

    They come from the table and from ``archived``, by default what ``archived_of`` returns: hand
    one over to see afterwards which files could not be read.
    Raises UnboundedError.
    """
    if search.text and not (search.narrows() or search.everything):
        raise UnboundedError(UnboundedError.__doc__)
    archived = archived or archived_of(search)
    hot = _fitting(_merged(search, archived.look), search, archived)
    return _with_archived(hot, archived)


def _fitting(
    found: Iterator[AuditRecord], search: Search, archived: Archived
) -> Iterator[AuditRecord]:
    """Yield the records that fit, as long as there is time to look for them."""
    for record in found:
        key = archived.key(record)
        if search.below and key >= search.below:
            continue  # it was shown, and to stop here would be no step on
        if _fits(search, record):
            yield record
        elif time.monotonic() > archived.until_s:
            archived.stopped = key
            return


@dataclass(frozen=True)
class Leaf:
    """So many of the records that fit, the newest first, and where the next ones begin."""

    records: Sequence[AuditRecord]
    below: Key | None
    """For ``Search.below``; None: nothing is left."""
    archived: Archived
    is_late: bool = False
    """It ends where the time did: what is older was not looked for."""


def leaf(search: Search, size: int, *, until_s: float) -> Leaf:
    """Return up to ``size`` records; no file is opened after ``until_s`` of ``time.monotonic``.

    Where the time ends before, so does the leaf: whoever goes on from there misses nothing, and
    is shown nothing twice. Raises UnboundedError.
    """
    archived = archived_of(search, until_s=until_s)
    records: list[AuditRecord] = []
    below = search.below
    for record in find(search, archived):
        key = archived.key(record)
        if len(records) == size:
            return Leaf(records, below, archived)
        if (place := archived.place()) is not None and key < place:
            break
        # What has left the table since it was read is met once more in its file.
        if below is None or key < below:
            records.append(record)
            below = key
    place = archived.place()
    if place is None:
        return Leaf(records, None, archived)
    archived.give_up()
    return Leaf(records, min(place, below) if below else place, archived, is_late=True)


def archived_record(pk: int) -> AuditRecord | None:
    """Return the record of this id from the file that has it, with its ``archive``.

    Raises StoreError, DamagedFileError, ValueError: the file cannot be read.
    """
    seal = AuditSeal.objects.of_record(pk)
    if seal is None or seal.archive_id is None:
        return None
    archive = AuditArchive.objects.defer("terms").get(pk=seal.archive_id)
    begin = b'{"id":%d,' % pk
    return next((it for it in records_of(archive, (begin,)) if it.pk == pk), None)


def archived_of(search: Search, **more: Any) -> Archived:
    """Return the records in archives that fit; ``more`` as ``Archived`` takes it."""
    exact = {"actor": search.actor, "action": search.action}
    named = [term(name, value) for name, value in exact.items() if value]
    words = [word(name, value) for name, value in exact.items() if value]
    if search.run_id:
        named.append(term("run", search.run_id))
        words.append(word("run_id", str(search.run_id)))
    ids = [it[1] for it in _meanings(search.target)]
    wanted = Wanted(
        search.since,
        _until(search),
        tuple(named),
        tuple(term("target", it) for it in ids),
        tuple(words),
        partial(_fits, search),
        search.below[0] if search.below and not _by_times(search) else None,
    )
    return Archived(wanted, search.key, **more)


def _meanings(target: str) -> list[tuple[str, str]]:
    """Return the types and ids that ``TYPE/ID`` or ``ID`` may stand for; no type: any."""
    kind, slash, rest = target.partition("/")
    whole = [("", target)] if target else []
    return [*whole, (kind, rest)] if slash and kind and rest else whole


def _fits(search: Search, record: AuditRecord) -> bool:
    meanings = _meanings(search.target)
    return (
        (not search.since or record.at >= search.since)
        and (not search.until or record.at < search.until)
        and search.actor in ("", record.actor)
        and search.action in ("", record.action)
        and search.run_id in (None, record.run_id)
        and (not meanings or any(_is_target(record, *it) for it in meanings))
        and (not search.below or search.key(record) < search.below)
        and (not search.text or holds(record, search.text, search.shown))
    )


def _is_target(record: AuditRecord, kind: str, target_id: str) -> bool:
    return kind in ("", record.target_type) and record.target_id == target_id


def _by_times(search: Search) -> bool:
    return _only_times(search) and not search.target


def _until(search: Search) -> datetime | None:
    """Return the end of what is looked for: the place to go on from, if it is earlier."""
    if not search.below or not _by_times(search):
        return search.until
    place = behind(search.below)
    return min(place, search.until) if search.until else place


def behind(key: Key) -> datetime:
    """Return a moment behind a place in the order of time; raise OverflowError."""
    return EPOCH + timedelta(microseconds=key[0]) + TICK


def _with_archived(hot: Iterator[AuditRecord], archived: Archived) -> Iterator[AuditRecord]:
    """Yield both in one order; what is on its way from the table to a file is yielded once."""
    archived.look()
    for record in hot:
        place = archived.key(record)
        yield from archived.above(place)
        archived.passed = place
        yield record
    archived.look()
    yield from archived.above(None)


def holds(record: AuditRecord, text: str, show: Show | None = None) -> bool:
    """Tell whether the record's reason or JSON has ``text`` in it, in upper or lower case.

    ``show`` returns what of the JSON counts; by default all of it does.
    """
    wanted = text.casefold()
    if wanted in record.reason.casefold():
        return True
    quoted = json.dumps(wanted, ensure_ascii=False)[1:-1]
    parts = map(show or _all_of_it, (record.before, record.after, record.evidence))
    kept = "\n".join(json.dumps(part, ensure_ascii=False) for part in parts).casefold()
    return wanted in kept or quoted in kept


def _all_of_it(content: Any) -> Any:
    return content


def _merged(search: Search, look: Look) -> Iterator[AuditRecord]:
    """Yield what the database finds: all that fits, and what it takes for the same.

    MariaDB equates ``a`` and ``A``, SQLite orders times as texts of three decimals or of six.
    """
    records = _filtered(search)
    if not search.target:
        return (_by_time if _by_times(search) else _by_id)(records, look)
    by_target = (_by_id(records.filter(**target), look) for target in targets(search.target))
    return heapq.merge(*by_target, key=lambda record: record.pk, reverse=True)


def _only_times(search: Search) -> bool:
    return bool(search.since or search.until) and not (
        search.actor or search.action or search.run_id
    )


def _filtered(search: Search) -> Records:
    wanted = {
        "at__gte": search.since and max(search.since, EPOCH) - TICK,
        "at__lt": _until(search),
        "pk__lt": search.below[0] if search.below and not _by_times(search) else None,
        "actor": search.actor,
        "action": search.action,
        "run_id": search.run_id,
    }
    return AuditRecord.objects.filter(
        **{name: value for name, value in wanted.items() if value not in (None, "")}
    )


def targets(target: str) -> list[dict[str, str]]:
    """Return what ``TYPE/ID`` or ``ID`` may stand for: each a target by the index that has both.

    An ID may have a slash of its own: what stands before it is a type only if there is one.
    """
    whole = [{"target_type": name, "target_id": target} for name in _types()]
    kind, slash, rest = target.partition("/")
    if slash and kind and rest:
        return [{"target_type": kind, "target_id": rest}, *whole]
    return whole


def _types() -> Iterator[str]:
    """Yield the types of targets there are: few, each found by one look into the index."""
    last = ""
    names = AuditRecord.objects.order_by("target_type").values_list("target_type", flat=True)
    while (found := names.filter(target_type__gt=last).first()) is not None:
        yield found
        last = found


def _by_id(records: Records, look: Look) -> Iterator[AuditRecord]:
    ordered, size = records.order_by("-id"), FIRST_PAGE
    page = list(ordered[:size])
    while page:
        look()
        yield from page
        if len(page) < size:
            return
        size = min(2 * size, LARGEST_PAGE)
        page = list(ordered.filter(pk__lt=page[-1].pk)[:size])


def _by_time(records: Records, look: Look) -> Iterator[AuditRecord]:
    """Yield by time, which is the order of the index on it."""
    ordered, size = records.order_by("-at", "-id"), FIRST_PAGE
    page = list(ordered[:size])
    seen: list[tuple[datetime, int]] = []
    while page:
        look()
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
    """Return the record as ``audit search --json`` prints it, wherever it came from."""
    values = (record.pk, record.at, *(getattr(record, it) for it in AuditRecord.CONTENT))
    values_of_line: dict[str, Any] = json.loads(line_of(values))
    return values_of_line | {"at": record.at.isoformat()}
