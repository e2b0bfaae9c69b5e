"""Seal audit records: what is committed is hashed, chained and signed, and nobody waits for it."""

import hmac
import logging
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import groupby
from typing import Any

from django.db import transaction

from recovery.clock import db_now
from recovery.models import AuditRecord, AuditSeal, AuditSealSpan
from recovery.models.seals import Span, span_text, spans_of
from recovery.trail import keys
from recovery.trail.lines import (
    COLUMNS,
    digest_of,
    hash_of,
    line_of,
    marks_of,
    moment_text,
    rows_of,
)

logger = logging.getLogger(__name__)

MOST_RECORDS = 5_000
"""In one transaction, and so in one seal."""
LATE_S = 86_400
"""So long a record is looked for whose id is below those that are sealed: its commit is late."""
MOST_GAPS = 5_000
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
    if seal.hash != hash_of_seal(seal, spans):
        return False
    return key is None or hmac.compare_digest(seal.mac, keys.mac_of(key, seal.hash))


def hash_of_seal(seal: AuditSeal, spans: Iterable[Span]) -> str:
    """Return the hash that the seal must have."""
    return sha256(text_of(seal, spans).encode("ascii")).hexdigest()


@transaction.atomic
def seal_some(last: Any) -> list[AuditSeal]:
    """Seal what is committed and not sealed yet, up to ``MOST_RECORDS``; return the seals.

    A seal a day, in the order of days. Records below the highest id that was sealed are those whose
    transaction committed late: they are looked for in the gaps. ``last`` is called as the last
    statement of the transaction. Two that seal at once give one number twice: the later one fails.
    """
    newest = AuditSeal.objects.newest()
    reached = newest.reached if newest else 0
    gaps: list[list[int]] = newest.gaps if newest else []
    late = list(rows_of((first, end) for first, end, _since in gaps))
    fresh_rows = AuditRecord.objects.filter(pk__gt=reached).order_by("pk").values_list(*COLUMNS)
    fresh = list(fresh_rows[: max(0, MOST_RECORDS - len(late))])
    if not (late or fresh):
        return []
    now = db_now()
    gaps = _gaps_after(gaps, late, fresh, reached=reached, now=now.timestamp())
    reached = fresh[-1][_PK] if fresh else reached
    made = []
    rows = sorted([*late, *fresh], key=_day_and_id)
    for day, of_day in groupby(rows, key=lambda row: row[_AT].date()):
        newest = _make(list(of_day), day, newest, now=now, reached=reached, gaps=gaps)
        made.append(newest)
    last()
    return made


def _day_and_id(row: tuple[Any, ...]) -> tuple[Any, int]:
    return row[_AT].date(), row[_PK]


def _gaps_after(
    gaps: Iterable[list[int]],
    late: Sequence[tuple[Any, ...]],
    fresh: Sequence[tuple[Any, ...]],
    *,
    reached: int,
    now: float,
) -> list[list[int]]:
    """Return the gaps that are left and those between fresh rows: ``[first, last, since]``."""
    found = [row[_PK] for row in late]
    kept = [
        [first, end, since]
        for first_id, last_id, since in gaps
        if since > now - LATE_S
        for first, end in _without(first_id, last_id, found)
    ]
    ids = [row[_PK] for row in fresh]
    pairs = zip([reached, *ids], ids, strict=False)
    kept += [[low + 1, high - 1, int(now)] for low, high in pairs if high > low + 1]
    return kept[-MOST_GAPS:]


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
    rows: Sequence[tuple[Any, ...]],
    day: Any,
    previous: AuditSeal | None,
    *,
    now: Any,
    reached: int,
    gaps: list[list[int]],
) -> AuditSeal:
    hashes = [hash_of(line_of(row)) for row in rows]
    spans = list(spans_of(row[_PK] for row in rows))
    moments = [row[_AT] for row in rows]
    seal = AuditSeal(
        number=previous.number + 1 if previous else 1,
        day=day,
        at=now,
        count=len(rows),
        first_at=min(moments),
        last_at=max(moments),
        digest=digest_of(hashes),
        previous=previous.hash if previous else "",
        marks=marks_of(hashes),
        reached=reached,
        gaps=gaps,
    )
    seal.hash = hash_of_seal(seal, spans)
    seal.key, key = next(iter(keys.all_keys().items()))
    seal.mac = keys.mac_of(key, seal.hash)
    seal.save(force_insert=True)
    AuditSealSpan.objects.bulk_create(
        AuditSealSpan(seal=seal, first_id=first, last_id=last) for first, last in spans
    )
    return seal


def unsealed_since() -> Any:
    """Return the time of the oldest record that is committed and in no seal; None: there is none.

    Records whose id lies in a gap that is no longer looked at are found by ``audit verify``.
    """
    newest = AuditSeal.objects.newest()
    moments = [
        row[_AT] for row in rows_of((it[0], it[1]) for it in (newest.gaps if newest else ()))
    ]
    fresh = (
        AuditRecord.objects.filter(pk__gt=newest.reached if newest else 0).order_by("pk").first()
    )
    return min([*moments, *([fresh.at] if fresh else [])], default=None)


def tell(made: Iterable[AuditSeal]) -> None:
    """Log the newest of ``made``, so that the log keeps it where the database does not reach."""
    newest = max(made, key=lambda seal: seal.number, default=None)
    if newest:
        logger.info("audit_sealed", extra={"seal": newest.number, "hash": newest.hash})
