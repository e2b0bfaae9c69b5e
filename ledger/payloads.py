"""Read payloads: what an entry would post, or why it cannot be read."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.exceptions import ValidationError

from ledger.models import ErrorCode
from ledger.outbox import SCHEMA_VERSION
from recovery.fields import InexactQuantityError, checked_key, storable_quantity

MIN_POSTINGS = 2
MAX_POSTINGS = 32_767

AccountKey = tuple[str, str]
Lines = list[tuple[AccountKey, Decimal]]


class RefusedError(Exception):
    """The entry cannot be posted."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        """Keep the code and the text that operators read."""
        super().__init__(text)
        self.code = code
        self.text = text


class UnknownVersionError(Exception):
    """The payload's schema version is for newer code."""


@dataclass(frozen=True)
class Movement:
    """What one payload posts: its lines and the change of each account they touch."""

    lines: Lines
    changes: dict[AccountKey, Decimal]


def read(payload: str, vendor: str) -> Movement:
    """Return what the stored JSON text ``payload`` posts.

    Raises RefusedError (``payload_invalid``, ``unbalanced``); UnknownVersionError.
    """
    lines = [_line(item, vendor) for item in _postings(payload)]
    changes: dict[AccountKey, Decimal] = {}
    units: dict[str, Decimal] = {}
    for key, quantity in lines:
        changes[key] = changes.get(key, Decimal(0)) + quantity
        units[key[1]] = units.get(key[1], Decimal(0)) + quantity
    if any(units.values()):
        raise RefusedError(ErrorCode.UNBALANCED, _sums_text(units.items()))
    return Movement(lines, changes)


def _postings(payload: str) -> list[Any]:
    try:
        content = json.loads(payload)
    except ValueError as error:
        raise RefusedError(ErrorCode.PAYLOAD_INVALID, f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise RefusedError(ErrorCode.PAYLOAD_INVALID, "the payload is not a JSON object")
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise RefusedError(ErrorCode.PAYLOAD_INVALID, f"schema_version {version!r} is no version")
    if version > SCHEMA_VERSION:
        raise UnknownVersionError
    postings = content.get("postings")
    if not isinstance(postings, list) or not MIN_POSTINGS <= len(postings) <= MAX_POSTINGS:
        raise RefusedError(ErrorCode.PAYLOAD_INVALID, "postings must be a list of two or more")
    return postings


def _line(item: Any, vendor: str) -> tuple[AccountKey, Decimal]:
    try:
        account, quantity, unit = item["account"], item["quantity"], item["unit"]
        if not (type(account) is type(quantity) is type(unit) is str):
            raise TypeError("account, quantity and unit are texts")
        return (checked_key(account), checked_unit(unit)), storable_quantity(
            Decimal(quantity), vendor
        )
    except (KeyError, TypeError) as error:
        text = f"posting {item!r:.200}: {error}"
    except InvalidOperation:
        text = f"posting {item!r:.200}: the quantity is not a number"
    except (InexactQuantityError, ValidationError) as error:
        text = f"posting {item!r:.200}: {_text_of(error)}"
    raise RefusedError(ErrorCode.PAYLOAD_INVALID, text)


UNIT_MAX_LENGTH = 20


def checked_unit(unit: str) -> str:
    """Return ``unit`` if it fits its column; raise ValidationError."""
    if len(unit) > UNIT_MAX_LENGTH:
        raise ValidationError(f"a unit has at most {UNIT_MAX_LENGTH} characters")
    return checked_key(unit)


def _text_of(error: Exception) -> str:
    return " ".join(error.messages) if isinstance(error, ValidationError) else str(error)


def _sums_text(units: Iterable[tuple[str, Decimal]]) -> str:
    sums = ", ".join(f"{total.normalize():f} {unit}" for unit, total in units if total)
    return f"the postings add up to {sums}, not to zero"
