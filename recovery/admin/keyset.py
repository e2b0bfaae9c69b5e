"""Pages of a list by the key of a row: any depth costs what the first page does."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import ValidationError
from django.db.models import DateTimeField, Field, Q, QuerySet, TextField, Value
from django.db.models.functions import Cast


@dataclass(frozen=True)
class Page:
    """Rows of a list, with the keys to go on from; none: it is the first or the last page."""

    rows: Sequence[Any]
    before: str | None = None
    after: str | None = None


class Keyset:
    """A list whose rows are told apart by the columns of its order, none of which is empty."""

    def __init__(self, rows: "QuerySet[Any]", order: Sequence[str], size: int) -> None:
        """Read ``rows``, which are in this ``order``, in pages of ``size``.

        ``order`` may leave out columns that have one value in all the rows.
        """
        self.order, self.size = order, size
        names = [name.removeprefix("-") for name in order]
        self.fields = {name: rows.model._meta.get_field(name) for name in names}
        # As they are stored: SQLite compares times as texts, of three decimals or of six.
        times = [name for name, field in self.fields.items() if isinstance(field, DateTimeField)]
        self.rows = rows.annotate(**{_stored(name): Cast(name, TextField()) for name in times})

    def after(self, key: str = "") -> Page:
        """Return the rows that follow ``key``, or the first ones; where none follow, the last."""
        found = self._read(key, forward=True)
        if key and not found:
            return self.before()
        return self._page(found[: self.size], earlier=bool(key), later=len(found) > self.size)

    def before(self, key: str = "") -> Page:
        """Return the rows that precede ``key``, or the last ones; the first page is a full one."""
        found = self._read(key, forward=False)
        if key and len(found) <= self.size:
            return self.after()
        rows = found[: self.size][::-1]
        return self._page(rows, earlier=len(found) > self.size, later=bool(key))

    def _page(self, rows: Sequence[Any], *, earlier: bool, later: bool) -> Page:
        before = self.key_of(rows[0]) if rows and earlier else None
        return Page(rows, before, self.key_of(rows[-1]) if rows and later else None)

    def key_of(self, row: Any) -> str:
        """Return the key of a row that was read here."""
        values = (getattr(row, _stored(name), getattr(row, name)) for name in self.fields)
        return ",".join(quote(str(value)) for value in values)

    def _read(self, key: str, *, forward: bool) -> list[Any]:
        """Return a page from ``key`` on, and one row more where there is one."""
        rows = self.rows if forward else self.rows.reverse()
        if key:
            operators = ["lt" if name.startswith("-") == forward else "gt" for name in self.order]
            rows = rows.filter(beyond(self._values(key), operators))
        return list(rows[: self.size + 1])

    def _values(self, key: str) -> list[tuple[str, Any]]:
        """Return the columns with their values in a key; refuse what no row could have."""
        try:
            parts = zip(self.fields.items(), key.split(","), strict=True)
            return [(name, _value(field, unquote(text))) for (name, field), text in parts]
        except (ValidationError, ValueError) as error:
            raise IncorrectLookupParameters from error


def beyond(key: Sequence[tuple[str, Any]], operators: Sequence[str]) -> Q:
    """Return the condition of rows beyond ``key``, columns with values in the order of an index.

    The first column bounds the range by itself: an OR alone would be none on SQLite.
    """
    (name, value), *rest = key
    further = Q(**{f"{name}__{operators[0]}": value})
    if not rest:
        return further
    up_to_it = Q(**{f"{name}__{operators[0]}e": value})
    return up_to_it & (further | Q(**{name: value}) & beyond(rest, operators[1:]))


def _stored(name: str) -> str:
    return f"{name}_as_stored"


def _value(field: "Field[Any, Any]", text: str) -> Any:
    value = field.to_python(text)
    if not isinstance(field, DateTimeField):
        return value
    if not isinstance(value, datetime) or not f"{value:%Y-%m-%d %H:%M:%S.%f}".startswith(text):
        raise ValueError(text)
    return Value(text, TextField())
