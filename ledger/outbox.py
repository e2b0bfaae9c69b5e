"""Publish ledger transactions: into the outbox, in the business transaction that causes them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction

from ledger.models import UNIT_MAX_LENGTH, OutboxEntry, Transaction
from recovery.fields import checked_key, storable_quantity
from recovery.wakeups import wake_on_commit

SCHEMA_VERSION = 1
JOB = "processLedgerOutbox"
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


def canonical(content: Any) -> str:
    """Return ``content`` as JSON that is the same text for the same content."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def content_hash(event_type: str, aggregate: str, payload: Any) -> str:
    """Return the SHA-256 of what an event key stands for (hexadecimal, 64 characters)."""
    text = canonical({"aggregate": aggregate, "event_type": event_type, "payload": payload})
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
    if not connection.in_atomic_block:
        raise PublishOutsideTransactionError
    for key in (event_key, aggregate):
        checked_key(key)
    checked_short_key(event_type, EVENT_TYPE_MAX_LENGTH)
    for line in lines:
        checked_key(line.account)
        checked_unit(line.unit)
        storable_quantity(line.quantity, connection.vendor)
    payload = payload_of(lines)
    size = len(canonical(payload).encode())
    if size > settings.OUTBOX_MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(event_key, size)
    entry = _insert_once(
        OutboxEntry(
            event_key=event_key,
            event_type=event_type,
            aggregate=aggregate,
            payload=payload,
            content_hash=content_hash(event_type, aggregate, payload),
            # A header from elsewhere must not stop the business.
            traceparent=traceparent if len(traceparent) <= TRACEPARENT_MAX_LENGTH else "",
        )
    )
    wake_on_commit(JOB)
    return entry


def _insert_once(entry: OutboxEntry) -> OutboxEntry:
    known = _known(entry)
    if known:
        return known
    try:
        with transaction.atomic():
            entry.save(force_insert=True)
    except IntegrityError:
        known = _known(entry)  # another publisher was first
        if not known:
            raise
        return known
    return entry


def _known(entry: OutboxEntry) -> OutboxEntry | None:
    """Return the entry of the same key and content there is; raise KeyConflictError."""
    known = OutboxEntry.objects.filter(event_key=entry.event_key).first()
    posted = known or Transaction.objects.filter(event_key=entry.event_key).first()
    if posted and posted.content_hash != entry.content_hash:
        raise KeyConflictError(entry.event_key)
    return known
