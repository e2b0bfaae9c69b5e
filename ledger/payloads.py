"""Read payloads: what an entry would post, or why it cannot be read."""

import json
import re
from collections.abc import Iterable
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError

from ledger.models import ErrorCode
from ledger.outbox import SCHEMA_VERSION, checked_unit
from recovery.fields import InexactQuantityError, checked_key, storable_quantity
from recovery.models import stored_text

MIN_POSTINGS = 2
MAX_POSTINGS = 32_767
_WRONG_POSTINGS = f"postings must be a list of {MIN_POSTINGS} to {MAX_POSTINGS}"

AccountKey = tuple[str, str]
Lines = list[tuple[AccountKey, str]]
"""The account and the quantity as it stands in a statement: digits, sign and point alone."""

_SUMS = Context(prec=40)
"""Enough for the exact sum of as many of the largest quantities as an entry can have."""

_decoder = json.JSONDecoder()

_ZERO = Decimal(0)

_is_plain = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,6})?").fullmatch
"""Tells whether a text is a quantity that every database keeps exactly: most are.

As many of them as an entry can have add up to 20 digits, which Python's default context keeps.
"""


class RefusedError(Exception):
    """The entry cannot be posted."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        """Keep the code and the text that operators read."""
        self.code = code
        self.text = stored_text(text)
        super().__init__(self.text)


class UnknownVersionError(Exception):
    """The payload's schema version is for newer code."""


class Movement(NamedTuple):
    """What one payload posts: its lines and the change of each account they touch."""

    lines: Lines
    changes: dict[AccountKey, Decimal]


def read(payload: str, vendor: str) -> Movement:
    """Return what the stored JSON text ``payload`` posts.

    Raises RefusedError (``payload_invalid``, ``unbalanced``); UnknownVersionError.
    """
    postings = _postings(payload)
    return _read_plain(postings) or _read(postings, vendor)


def _read_plain(postings: Iterable[Any]) -> Movement | None:
    """Read balanced postings of one unit and of plain quantities: nearly all are such.

    None: they are not, or something is wrong with them.
    """
    lines: Lines = []
    changes: dict[AccountKey, Decimal] = {}
    total, units = _ZERO, set()
    try:
        for item in postings:
            text = item["quantity"]
            if not _is_plain(text):
                return None
            key = _account(item["account"], item["unit"])
            change = Decimal(text)
            lines.append((key, text))
            changes[key] = changes[key] + change if key in changes else change
            total += change
            units.add(key[1])
    except (KeyError, TypeError, ValidationError):
        return None
    return Movement(lines, changes) if not total and len(units) == 1 else None


def _read(postings: Iterable[Any], vendor: str) -> Movement:
    lines: Lines = []
    changes: dict[AccountKey, Decimal] = {}
    units: dict[str, Decimal] = {}
    for item in postings:
        key, text = _checked_line(item, vendor)
        change = Decimal(text)
        lines.append((key, text))
        changes[key] = _SUMS.add(changes.get(key, _ZERO), change)
        units[key[1]] = _SUMS.add(units.get(key[1], _ZERO), change)
    if any(units.values()):
        raise RefusedError(ErrorCode.UNBALANCED, _sums_text(units.items()))
    return Movement(lines, changes)


def _postings(payload: str) -> list[Any]:
    try:
        content = _parsed(payload)
    except ValueError as error:
        raise RefusedError(ErrorCode.PAYLOAD_INVALID, f"not JSON: {error}") from None
    except RecursionError:
        raise RefusedError(ErrorCode.PAYLOAD_INVALID, "the payload is nested too deeply") from None
    if not isinstance(content, dict):
        raise RefusedError(ErrorCode.PAYLOAD_INVALID, "the payload is not a JSON object")
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        text = f"schema_version {_shown(version)} is no version"
        raise RefusedError(ErrorCode.PAYLOAD_INVALID, text)
    if version > SCHEMA_VERSION:
        raise UnknownVersionError
    postings = content.get("postings")
    if not isinstance(postings, list) or not MIN_POSTINGS <= len(postings) <= MAX_POSTINGS:
        raise RefusedError(ErrorCode.PAYLOAD_INVALID, _WRONG_POSTINGS)
    return postings


def _parsed(payload: str) -> Any:
    """Return what ``json.loads`` does, at half the price where nothing stands around the value."""
    try:
        content, end = _decoder.raw_decode(payload)
    except ValueError:
        end = -1
    return content if end == len(payload) else json.loads(payload)


def _text_in(item: Any, name: str) -> str:
    value = item[name]
    if type(value) is not str:
        raise TypeError(f"{name} is not a text")
    return value


def _shown(junk: Any) -> str:
    try:
        return f"{junk!r:.200}"
    except RecursionError:
        return f"{type(junk).__name__} nested too deeply"


@lru_cache(maxsize=50_000)
def _account(account: Any, unit: Any) -> AccountKey:
    """Return the key of an account; each is checked once. Raises TypeError, ValidationError."""
    if type(account) is not str or type(unit) is not str:
        raise TypeError
    return checked_key(account), checked_unit(unit)


def _checked_line(item: Any, vendor: str) -> tuple[AccountKey, str]:
    try:
        account, quantity, unit = (_text_in(item, name) for name in ("account", "quantity", "unit"))
        key = checked_key(account), checked_unit(unit)
        return key, f"{storable_quantity(Decimal(quantity), vendor):f}"
    except (KeyError, TypeError) as error:
        text = f"posting {_shown(item)}: {error}"
    except InvalidOperation:
        text = f"posting {_shown(item)}: the quantity is not a number"
    except (InexactQuantityError, ValidationError) as error:
        text = f"posting {_shown(item)}: {_text_of(error)}"
    raise RefusedError(ErrorCode.PAYLOAD_INVALID, text)


def _text_of(error: Exception) -> str:
    return " ".join(error.messages) if isinstance(error, ValidationError) else str(error)


def _sums_text(units: Iterable[tuple[str, Decimal]]) -> str:
    sums = ", ".join(f"{total.normalize():f} {unit}" for unit, total in units if total)
    return f"the postings add up to {sums}, not to zero"
