"""Entries to post: deliveries of two to four SKUs each, against one hot account."""

import itertools
import random
import secrets
import time
from collections.abc import Callable
from decimal import Decimal

from django.db import connection, transaction

from ledger import rows
from ledger.models import Account, OutboxEntry
from ledger.outbox import Line, content_hash, payload_of, publish

SKUS = 2_000
LEAST_SKUS, MOST_SKUS = 2, 4
HOT = "external:receipts"
CLOSED, BARE = "stock:CLOSED", "stock:BARE"
UNIT = "mm2"
EVENT_TYPE = "lot-received"
BAD_EACH = 10
"""One entry of so many is bad, where some are to be."""
ROWS_AT_ONCE = 1_000
TEMPLATES = {False: "bench_good", True: "bench_mixed"}

_numbers = itertools.count(1)
_run = secrets.token_hex(4)


def make_accounts() -> None:
    """Make every account, so that no contender pays for them; one of them is closed."""
    codes = [_sku(number) for number in range(SKUS)] + [HOT, CLOSED, BARE]
    rows.make_accounts({(code, UNIT) for code in codes})
    Account.objects.filter(code=CLOSED).close()


def delivery(number: int) -> list[Line]:
    """Return the lines of delivery ``number``: the same ones in every run."""
    draw = random.Random(number)
    skus = draw.sample(range(SKUS), draw.randint(LEAST_SKUS, MOST_SKUS))
    lines = [Line(_sku(sku), Decimal(draw.randint(1, 9_999)) / 100, UNIT) for sku in skus]
    total = sum((line.quantity for line in lines), Decimal(0))
    return [*lines, Line(HOT, -total, UNIT)]


def _sku(number: int) -> str:
    return f"stock:SKU-{number}"


def bad_delivery(number: int) -> list[Line]:
    """Return the lines of an entry that is refused, for one of three reasons in turn."""
    lines = delivery(number)
    reasons: tuple[Callable[[], list[Line]], ...] = (
        lambda: lines[:-1],  # unbalanced
        lambda: [*lines, Line(CLOSED, Decimal(1), UNIT), Line(HOT, Decimal(-1), UNIT)],
        lambda: [*lines, Line(BARE, Decimal(-1), UNIT), Line(HOT, Decimal(1), UNIT)],
    )
    return reasons[number // BAD_EACH % len(reasons)]()


def store(count: int, *, bad: bool = False, label: str = "") -> None:
    """Store ``count`` pending entries; ``bad``: every tenth of them is refused."""
    with transaction.atomic():
        OutboxEntry.objects.bulk_create(
            [_entry(number, label or _run, bad=bad) for number in range(1, count + 1)],
            batch_size=ROWS_AT_ONCE,
        )


def _entry(number: int, label: str, *, bad: bool) -> OutboxEntry:
    lines = bad_delivery(number) if bad and number % BAD_EACH == 0 else delivery(number)
    aggregate = f"lot:BENCH-{label}-{number}"
    payload = payload_of(lines)
    return OutboxEntry(
        event_key=f"{aggregate}:received",
        event_type=EVENT_TYPE,
        aggregate=aggregate,
        payload=payload,
        content_hash=content_hash(EVENT_TYPE, aggregate, payload),
    )


def make_templates(count: int) -> None:
    """Keep ``count`` entries of either sort as templates: the server copies them in no time."""
    for bad, table in TEMPLATES.items():
        store(count, bad=bad, label="T")
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE OR REPLACE TABLE {table} SELECT * FROM {rows.ENTRY}")
            cursor.execute(f"TRUNCATE TABLE {rows.ENTRY}")


def copy_templates(*, bad: bool = False, limit: int = 10**9) -> None:
    """Publish the templates once more, with fresh keys; what is left pending goes first."""
    columns = "event_type, payload, content_hash, status, attempts, last_error_code, last_error"
    mark = f"{_run}-{next(_numbers)}"
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {rows.ENTRY} WHERE status = 'pending'")
        cursor.execute(
            f"INSERT INTO {rows.ENTRY} (event_key, aggregate, {columns}, traceparent)"
            f" SELECT REPLACE(event_key, '-T-', %s), REPLACE(aggregate, '-T-', %s), {columns}, ''"
            f" FROM {TEMPLATES[bad]} ORDER BY id LIMIT {limit}",
            [f"-{mark}-", f"-{mark}-"],
        )


def publish_one() -> tuple[int, float]:
    """Publish one entry as the product does, wake-up included.

    Return its id, and when its commit was answered (``time.perf_counter``), before the wake-up.
    """
    number = next(_numbers)
    aggregate = f"lot:BENCH-{_run}-{number}"
    committed: list[float] = []
    with transaction.atomic():
        transaction.on_commit(lambda: committed.append(time.perf_counter()))
        entry = publish(
            event_key=f"{aggregate}:received",
            event_type=EVENT_TYPE,
            aggregate=aggregate,
            lines=delivery(number),
        )
    return entry.pk, committed[0]
