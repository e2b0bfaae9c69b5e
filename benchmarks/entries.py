"""Entries to post: half a thousand SKUs, two postings each, an aggregate each."""

import itertools
import secrets
from decimal import Decimal

from django.db import transaction

from ledger.models import OutboxEntry
from ledger.outbox import Line, content_hash, payload_of, publish

SKUS = 500
ROWS_AT_ONCE = 1_000

_numbers = itertools.count(1)
_run = secrets.token_hex(4)


def publish_many(count: int) -> list[int]:
    """Write ``count`` pending entries in bulk and return their ids."""
    rows = [_entry(next(_numbers)) for _ in range(count)]
    with transaction.atomic():
        OutboxEntry.objects.bulk_create(rows, batch_size=ROWS_AT_ONCE)
    keys = [row.event_key for row in rows]
    found = OutboxEntry.objects.filter(event_key__in=keys).order_by("id")
    return list(found.values_list("pk", flat=True))


def publish_one() -> int:
    """Publish one entry as the product does, wake-up included, and return its id."""
    number = next(_numbers)
    aggregate = _aggregate(number)
    with transaction.atomic():
        entry = publish(
            event_key=f"{aggregate}:received",
            event_type="lot-received",
            aggregate=aggregate,
            lines=_lines(number),
        )
    return entry.pk


def _aggregate(number: int) -> str:
    return f"lot:BENCH-{_run}-{number}"


def _lines(number: int) -> list[Line]:
    return [
        Line(f"stock:SKU-{number % SKUS}", Decimal(7), "mm2"),
        Line("external:receipts", Decimal(-7), "mm2"),
    ]


def _entry(number: int) -> OutboxEntry:
    aggregate = _aggregate(number)
    payload = payload_of(_lines(number))
    return OutboxEntry(
        event_key=f"{aggregate}:received",
        event_type="lot-received",
        aggregate=aggregate,
        payload=payload,
        content_hash=content_hash("lot-received", aggregate, payload),
    )
