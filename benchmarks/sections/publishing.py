"""What publishing adds to a business transaction of three row writes."""

import itertools
import statistics
import time
from collections.abc import Callable
from decimal import Decimal

from django.db import connection, transaction

from benchmarks import processes
from benchmarks.options import Options
from benchmarks.report import Row, Table, at_most, ratio
from ledger.outbox import Line, publish
from ledger.rows import ENTRY
from recovery import pauses
from splits.models import Lot, SplitOrder

JOB = "processLedgerOutbox"
WITHOUT, BY_HAND = "three row writes", "three row writes, and the entry's INSERT by hand"
WITH = "three row writes, and publish()"
TRANSACTIONS = 400
MOST_TIMES = 1.15
TO_MS = 1_000
PAYLOAD = (
    '{"postings":[{"account":"stock:SHEET","quantity":"10","unit":"m2"},'
    '{"account":"external:receipts","quantity":"-10","unit":"m2"}],"schema_version":1}'
)

_numbers = itertools.count(1)


def measure(options: Options) -> Table:
    """Measure transactions in turn, with a cluster at hand whose job is paused."""
    pauses.pause(JOB, actor="cli:benchmark")
    found: dict[str, list[float]] = {name: [] for name in EXTRAS}
    with processes.qcluster():
        _round()  # code, caches and buffers are warm
        for _ in range(options.rounds):
            for name, samples in _round().items():
                found[name].append(statistics.median(samples))
    table = Table(
        "publish",
        f"milliseconds a transaction ({options.rounds} rounds of {TRANSACTIONS} either way,"
        " one after the other; medians of each round)",
        "ms",
        floor="the same without publish()",
    )
    table.rows = [Row(name, samples, found[WITHOUT]) for name, samples in found.items()]
    claim = "with publish() at most 1.15 times as long"
    table.bars = [at_most(claim, ratio(found[WITH], found[WITHOUT]), MOST_TIMES)]
    return table


def _round() -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in EXTRAS}
    for number in range(TRANSACTIONS):
        for name in EXTRAS if number % 2 else reversed(EXTRAS):
            started = time.perf_counter()
            business(next(_numbers), EXTRAS[name])
            found[name].append((time.perf_counter() - started) * TO_MS)
    return found


def business(number: int, extra: Callable[[str], object]) -> None:
    """Insert a lot, consume it, insert an order; do something extra for the lot's code."""
    code = f"BENCH-{number:08d}"
    with transaction.atomic():
        lot = Lot.objects.create(
            code=code, root_code=code, sku="SHEET", quantity=Decimal(10), unit="m2"
        )
        Lot.objects.filter(pk=lot.pk).consume()
        SplitOrder.objects.create(number=code, source_lot=lot, live_lot=lot)
        extra(code)


def _publish(code: str) -> None:
    publish(
        event_key=f"lot:{code}:received",
        event_type="lot-received",
        aggregate=f"lot:{code}",
        lines=[
            Line("stock:SHEET", Decimal(10), "m2"),
            Line("external:receipts", Decimal(-10), "m2"),
        ],
    )


def _insert(code: str) -> None:
    """Insert the row and no more: no check, no hash, no wake-up."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {ENTRY} (event_key, event_type, aggregate, payload, content_hash, status,"
            " attempts, last_error_code, last_error, traceparent)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                f"lot:{code}:received",
                "lot-received",
                f"lot:{code}",
                PAYLOAD,
                "0" * 64,
                *("pending", 0, "", "", ""),
            ],
        )


EXTRAS: dict[str, Callable[[str], object]] = {
    WITHOUT: lambda _code: None,
    BY_HAND: _insert,
    WITH: _publish,
}
"""What each contender adds to the business."""
