"""Seal audit records: what is committed is hashed, chained and signed, and nobody waits for it."""

import hmac
import logging
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import date, datetime
from hashlib import sha256
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import QuerySet

from recovery.clock import db_now
from recovery.models import AuditRecord, AuditSeal, AuditSealSpan
from recovery.models.seals import Span, span_text, spans_of
from recovery.trail import keys
from recovery.trail.lines import (
    COLUMNS,
    digest_of,
    hash_of,
    in_parts,
    line_of,
    marks_of,
    moment_text,
)

logger = logging.getLogger(__name__)

MOST_RECORDS = 5_000
"""In one transaction, and so in one seal."""
MOST_BYTES = 16 << 20
"""So long the lines of a seal are, or by one longer: whoever archives or verifies it holds them."""
LATE_S = 86_400
"""So long a record is looked for whose id is below those that are sealed: its commit is late."""
MOST_GAPS = 5_000
ROWS_AT_ONCE = 250
_PK, _AT = COLUMNS.index("id"), COLUMNS.index("at")


def text_of(seal: AuditSeal, spans: Iterable[Span]) -> str:
    """Return the text whose SHA-256 is the seal's hash; docs/audit.md explains it."""
    return (
        f"seal {seal.number}\n"
        f"previous {seal.previous or '-'}\n"
        f"day {seal.day:%Y-%m-%d}\n"
        f"at {moment_text(seal.at)}\n"
        f"records {','.join(map(span_text, spans))}\n"
        f"digest {seal.digest}\n"
    )


def is_sound(seal: AuditSeal, spans: Iterable[Span]) -> bool:
    """Tell whether a seal says what it said when it was signed, by a key that is known."""
    key = keys.all_keys().get(seal.key)
    if key is None or seal.hash != hash_of_seal(seal, spans):
        return False
    return hmac.compare_digest(seal.mac, keys.mac_of(key, seal.hash))


def hash_of_seal(seal: AuditSeal, spans: Iterable[Span]) -> str:
    """Return the hash that the seal must have."""
    return sha256(text_of(seal, spans).encode("ascii")).hexdigest()


class Hashed(NamedTuple):
    """What is kept of a record while it is being sealed."""

    day: date
    pk: int
    at: datetime
    hash: str
    size: int
    """Bytes of its line."""


@transaction.atomic
def seal_some(last: Callable[[], None]) -> list[AuditSeal]:
    """Seal what is committed and not sealed yet; return the seals.

    Up to ``MOST_RECORDS`` with ``MOST_BYTES`` of lines: a seal a day, in the order of days. Records
    below the highest id that was sealed are those whose transaction committed late: they are looked
    for in the gaps. ``last`` is called as the last statement of the transaction. Two that seal at
    once give one number twice: the later one fails.
    """
    newest, reached = AuditSeal.objects.newest(), AuditSealSpan.reached()
    gaps: list[list[int]] = newest.gaps if newest else []
    taken = list(_hashed(chain(_rows_within(gaps), _rows_above(reached))))
    if not taken:
        return []
    now = db_now()
    gaps = _gaps_after(gaps, [it.pk for it in taken], reached=reached, now=now.timestamp())
    if newest:
        AuditSeal.objects.filter(pk=newest.pk).keep_gaps([])
    made = []
    for day, of_day in groupby(sorted(taken), key=attrgetter("day")):
        newest = _make(list(of_day), day, newest, now=now)
        made.append(newest)
    AuditSeal.objects.filter(pk=made[-1].pk).keep_gaps(gaps)
    last()
    return made


def is_full(made: Collection[AuditSeal]) -> bool:
    """Tell whether seals of one call of ``seal_some`` end where they had to: there may be more."""
    records, size = sum(it.count for it in made), sum(it.size for it in made)
    return records >= MOST_RECORDS or size >= MOST_BYTES


def _hashed(rows: Iterable[tuple[Any, ...]]) -> Iterator[Hashed]:
    """Hash rows, as many as one transaction may take."""
    count = size = 0
    for row in rows:
        line = line_of(row)
        yield Hashed(row[_AT].date(), row[_PK], row[_AT], hash_of(line), len(line))
        count, size = count + 1, size + len(line)
        if count >= MOST_RECORDS or size >= MOST_BYTES:
            return


def _rows_within(gaps: Iterable[Sequence[int]]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows that have appeared in gaps."""
    for some in in_parts((first, end) for first, end, _since in gaps):
        yield from _in_pages(AuditRecord.objects.filter(some))


def _rows_above(reached: int) -> Iterator[tuple[Any, ...]]:
    return _in_pages(AuditRecord.objects.all(), reached)


def _in_pages(records: QuerySet[AuditRecord], reached: int = 0) -> Iterator[tuple[Any, ...]]:
    """Yield rows in the order of ids, read a few at a time: they may hold whole payloads."""
    rows = records.order_by("pk").values_list(*COLUMNS)
    while page := list(rows.filter(pk__gt=reached)[:ROWS_AT_ONCE]):
        yield from page
        if len(page) < ROWS_AT_ONCE:
            return
        reached = page[-1][_PK]


def _gaps_after(
    gaps: Iterable[list[int]], taken: Iterable[int], *, reached: int, now: float
) -> list[list[int]]:
    """Return the gaps that are left and those between fresh ids: ``[first, last, since]``."""
    ids = sorted(taken)
    place = bisect_right(ids, reached)
    late, fresh = ids[:place], ids[place:]
    kept = [
        [first, end, since]
        for first_id, last_id, since in gaps
        if since > now - LATE_S
        for first, end in _without(first_id, last_id, late)
    ]
    step = _step()
    pairs = zip([reached, *fresh], fresh, strict=False)
    kept += [[low + 1, high - 1, int(now)] for low, high in pairs if high - low not in (1, step)]
    if len(kept) > MOST_GAPS:
        logger.warning("audit_gaps_dropped", extra={"gaps": len(kept) - MOST_GAPS})
    return kept[-MOST_GAPS:]


def _step() -> int:
    """Return by how much ids of one writer grow: Galera lets each node take every so-many-th."""
    if connection.vendor != "mysql":
        return 1
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@auto_increment_increment")
        return int(cursor.fetchone()[0])


def _without(first: int, last: int, ids: Iterable[int]) -> Iterable[Span]:
    """Yield what is left of a span when ``ids``, which rise, are taken out."""
    for pk in ids:
        if first <= pk <= last:
            if pk > first:
                yield first, pk - 1
            first = pk + 1
    if first <= last:
        yield first, last


def _make(
    records: Sequence[Hashed], day: date, previous: AuditSeal | None, *, now: datetime
) -> AuditSeal:
    hashes = [it.hash for it in records]
    spans = list(spans_of(it.pk for it in records))
    moments = [it.at for it in records]
    seal = AuditSeal(
        number=previous.number + 1 if previous else 1,
        day=day,
        at=now,
        count=len(records),
        size=sum(it.size for it in records),
        first_at=min(moments),
        last_at=max(moments),
        digest=digest_of(hashes),
        previous=previous.hash if previous else "",
        marks=marks_of(hashes),
    )
    seal.hash = hash_of_seal(seal, spans)
    seal.key, key = next(iter(keys.all_keys().items()))
    seal.mac = keys.mac_of(key, seal.hash)
    seal.save(force_insert=True)
    AuditSealSpan.objects.bulk_create(
        AuditSealSpan(seal=seal, first_id=first, last_id=last) for first, last in spans
    )
    return seal


def unsealed_since() -> datetime | None:
    """Return the time of the oldest record that is committed and in no seal; None: there is none.

    Records whose id lies in a gap that is no longer looked at are found by ``audit verify``.
    """
    newest = AuditSeal.objects.defer("marks").newest()
    gaps = [(first, last) for first, last, _since in newest.gaps] if newest else []
    records = AuditRecord.objects.order_by("pk")
    above = records.filter(pk__gt=AuditSealSpan.reached()).values_list("at", flat=True)[:1]
    within = (records.filter(some).values_list("at", flat=True) for some in in_parts(gaps))
    return min([*above, *chain.from_iterable(within)], default=None)


def tell(made: Iterable[AuditSeal]) -> None:
    """Log the newest of ``made``, so that the log keeps it where the database does not reach."""
    newest = max(made, key=lambda seal: seal.number, default=None)
    if newest:
        logger.info("audit_sealed", extra={"seal": newest.number, "hash": newest.hash})
