"""Publish ledger transactions: into the outbox, in the business transaction that causes them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection

from ledger.models import UNIT_MAX_LENGTH, EntryStatus, OutboxEntry, Transaction
from recovery import tracing
from recovery.fields import checked_key, storable_quantity
from recovery.wakeups import wake_on_commit

SCHEMA_VERSION = 1
JOB = "processLedgerOutbox"
CONTENT = ("event_key", "content_hash")
STORED = ("event_key", "event_type", "aggregate", "payload", "content_hash", "traceparent")
INSERT = (
    f"INSERT INTO {OutboxEntry._meta.db_table}"  # noqa: S608 - constants
    f" (status, attempts, last_error_code, last_error, {', '.join(STORED)}) VALUES ("
    # No status where the ledger has the key with other content: the database refuses the row.
    # (INSERT … SELECT … WHERE NOT EXISTS would lock out other publishers while it waits.)
    f"CASE WHEN EXISTS (SELECT 1 FROM {Transaction._meta.db_table}"
    " WHERE event_key = %s AND content_hash <> %s) THEN NULL ELSE 'pending' END,"
    f" 0, '', '', {', '.join(['%s'] * len(STORED))})"
)
KNOWN = [
    column.attname
    for column in OutboxEntry._meta.concrete_fields
    if column.attname in {"id", "status", *STORED}
]
"""What is known of an entry that was just stored; the rest is read where it is asked for."""
STATEMENT_BYTES, ROW_BYTES = 200_000, 1_000
"""So much goes into one statement, unless a single row is larger: some servers take 1 MB."""
EVENT_TYPE_MAX_LENGTH = 100
TRACEPARENT_MAX_LENGTH = 55


class LedgerError(Exception):
    """The ledger refused."""


class PublishOutsideTransactionError(LedgerError):
    """publish() belongs into the transaction of the business change that causes the entry."""

    def __init__(self) -> None:
        """Say what the class says."""
        super().__init__(type(self).__doc__)


class KeyConflictError(LedgerError):
    """This event key was published before with other content."""

    def __init__(self, event_key: str) -> None:
        """Name the key."""
        super().__init__(f"event key {event_key!r} was published before with other content")


class PayloadTooLargeError(LedgerError):
    """The payload is larger than OUTBOX_MAX_PAYLOAD_BYTES."""

    def __init__(self, event_key: str, size: int) -> None:
        """Name the key and the size in bytes."""
        super().__init__(
            f"payload of {event_key!r} has {size} bytes;"
            f" OUTBOX_MAX_PAYLOAD_BYTES allows {settings.OUTBOX_MAX_PAYLOAD_BYTES}"
        )


@dataclass(frozen=True)
class Line:
    """One posting to be: a signed quantity of ``unit`` on account ``account``."""

    account: str
    quantity: Decimal
    unit: str


_encoder = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical(content: Any) -> str:
    """Return ``content`` as JSON that is the same text for the same content."""
    return _encoder.encode(content)


def content_hash(event_type: str, aggregate: str, payload: Any) -> str:
    """Return the SHA-256 of what an event key stands for (hexadecimal, 64 characters)."""
    return _hash_of(event_type, aggregate, canonical(payload))


def _hash_of(event_type: str, aggregate: str, payload: str) -> str:
    """Return the hash of the canonical object of the three; ``payload`` is canonical already."""
    head = f'"aggregate":{canonical(aggregate)},"event_type":{canonical(event_type)}'
    text = f'{{{head},"payload":{payload}}}'
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def checked_unit(unit: str) -> str:
    """Return ``unit`` if it can be one; raise ValidationError."""
    return checked_short_key(unit, UNIT_MAX_LENGTH)


def checked_short_key(value: str, limit: int) -> str:
    """Return ``value`` if it is a key of up to ``limit`` characters; raise ValidationError."""
    if len(value) > limit:
        raise ValidationError(f"{value[:limit]!r}… has more than {limit} characters")
    return checked_key(value)


def payload_of(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the payload for ``lines``; decimals as text without superfluous zeros."""
    return {
        "schema_version": SCHEMA_VERSION,
        "postings": [
            {"account": line.account, "quantity": quantity_text(line.quantity), "unit": line.unit}
            for line in lines
        ],
    }


def quantity_text(quantity: Decimal) -> str:
    """Return ``quantity`` as it stands in payloads: plain, no exponent, no trailing zeros."""
    text = f"{quantity:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True)
class Event:
    """What happened, and the stock movement that it caused."""

    event_key: str
    event_type: str
    aggregate: str
    lines: Sequence[Line]
    traceparent: str = ""


def publish(
    *,
    event_key: str,
    event_type: str,
    aggregate: str,
    lines: Sequence[Line],
    traceparent: str = "",
) -> OutboxEntry:
    """Put one ledger transaction into the outbox, to be posted once this transaction commits.

    The caller holds the row lock of the aggregate's root lot, so that ids follow commits
    within an aggregate. The same key with the same content is one entry.

    Raises PublishOutsideTransactionError; KeyConflictError: other content under the key;
    PayloadTooLargeError; ValidationError: a key, type, account or unit that cannot be a key;
    InexactQuantityError. Whether the postings balance is judged when they are posted.
    """
    _require_transaction()
    entry = _insert_once(_row_of(Event(event_key, event_type, aggregate, lines, traceparent)))
    wake_on_commit(JOB)
    return entry


def publish_all(events: Iterable[Event]) -> None:
    """Publish many events at once, each as ``publish`` does: all of them or none.

    The caller rolls back where one is refused. Raises what ``publish`` raises, and IntegrityError
    where another publisher came first with one of the keys.
    """
    _require_transaction()
    rows = [_row_of(event) for event in events]
    keys = [row["event_key"] for row in rows]
    known = dict(OutboxEntry.objects.filter(event_key__in=keys).values_list(*CONTENT))
    posted = dict(Transaction.objects.filter(event_key__in=keys).values_list(*CONTENT))
    for key, content in (tuple(row[name] for name in CONTENT) for row in rows):
        if (posted | known).get(key, content) != content:
            raise KeyConflictError(key)
    largest = max((len(row["payload"].encode()) for row in rows), default=0)
    OutboxEntry.objects.bulk_create(
        (
            OutboxEntry(**row | {"payload": json.loads(row["payload"])})
            for row in rows
            if row["event_key"] not in known
        ),
        batch_size=max(1, STATEMENT_BYTES // (largest + ROW_BYTES)),
    )
    wake_on_commit(JOB)


def _require_transaction() -> None:
    if not connection.in_atomic_block:
        raise PublishOutsideTransactionError


def _row_of(event: Event) -> dict[str, str]:
    """Return what is stored of an event, checked; the payload as canonical JSON."""
    for key in (event.event_key, event.aggregate):
        checked_key(key)
    checked_short_key(event.event_type, EVENT_TYPE_MAX_LENGTH)
    for line in event.lines:
        checked_key(line.account)
        checked_unit(line.unit)
        storable_quantity(line.quantity, connection.vendor)
    payload = canonical(payload_of(event.lines))
    size = len(payload.encode())
    if size > settings.OUTBOX_MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(event.event_key, size)
    traceparent = event.traceparent or tracing.current()
    return {
        "event_key": event.event_key,
        "event_type": event.event_type,
        "aggregate": event.aggregate,
        "payload": payload,
        "content_hash": _hash_of(event.event_type, event.aggregate, payload),
        # A header from elsewhere must not stop the business.
        "traceparent": traceparent if len(traceparent) <= TRACEPARENT_MAX_LENGTH else "",
    }


def _insert_once(row: Mapping[str, str]) -> OutboxEntry:
    """Store the entry by one statement, which fails where its key has other content already.

    No look before: keys are new almost always, and each round trip is one of the business's.
    """
    key, content = (row[name] for name in CONTENT)
    try:
        with connection.cursor() as cursor:
            cursor.execute(INSERT, [key, content, *(row[name] for name in STORED)])
            pk = cursor.lastrowid
    except IntegrityError:  # the statement alone is undone
        there = _known(key, content)
        if not there:
            raise
        return there
    known = {**row, "id": pk, "payload": json.loads(row["payload"]), "status": EntryStatus.PENDING}
    return OutboxEntry.from_db(connection.alias, KNOWN, [known[name] for name in KNOWN])


def _known(event_key: str, content: str) -> OutboxEntry | None:
    """Return the entry of the same key and content there is; raise KeyConflictError."""
    known = OutboxEntry.objects.filter(event_key=event_key).first()
    posted = known or Transaction.objects.filter(event_key=event_key).first()
    if posted and posted.content_hash != content:
        raise KeyConflictError(event_key)
    return known
