"""Read cut plans (CSV) as whole orders, in flat memory whatever the file holds."""

import csv
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from itertools import groupby
from typing import Any, BinaryIO, NamedTuple

from django.core.exceptions import ValidationError

from ledger.outbox import quantity_text
from recovery.fields import (
    KEY_MAX_LENGTH,
    QUANTITY_DIGITS,
    InexactQuantityError,
    checked_key,
    storable_quantity,
)
from splits.models import LineKind

HEADER = (
    "order_number", "board_code", "board_sku", "board_quantity", "unit",
    "line", "kind", "sku", "quantity",
)  # fmt: skip
BOM = b"\xef\xbb\xbf"
LINE_MAX_BYTES = 16_384
LINES_MAX = 999
NUMBER_MAX = 120
SKU_MAX = 180
UNIT_MAX = 20
CODE_MAX = KEY_MAX_LENGTH - len("-001")
SHOWN_CHARS = 60

_QUOTED_FIELD = re.compile(rb'"((?:[^"]|"")*)"(?:,|$)')
_QUANTITY = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_LINE_NUMBER = re.compile(r"[0-9]{1,3}")


class HeaderError(ValueError):
    """The first row is not the header of a cut plan."""


class RowError(ValueError):
    """This row cannot be used."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row, or the order that begins in it, is refused; rows count from 1, the header."""

    row: int
    order_number: str
    message: str

    def as_dict(self) -> dict[str, int | str]:
        """Return the fault as ``import_splits --json`` prints it."""
        return {"row": self.row, "order_number": self.order_number, "message": self.message}


class Board(NamedTuple):
    """The lot an order splits."""

    code: str
    sku: str
    quantity: Decimal
    unit: str


class PlannedLine(NamedTuple):
    """One child lot to be."""

    line: int
    kind: str
    sku: str
    quantity: Decimal


@dataclass(frozen=True, slots=True)
class PlannedOrder:
    """A whole order whose lines add up to its board; ``row`` is its first row."""

    row: int
    number: str
    board: Board
    lines: tuple[PlannedLine, ...]


class RawLine(NamedTuple):
    """A physical line without its end; of a line that is too long, only the beginning."""

    row: int
    data: bytes
    too_long: bool
    end: int
    """Offset in the file, in bytes, of what follows."""


def raw_lines(file: BinaryIO) -> Iterator[RawLine]:
    """Yield the physical lines of ``file``; none takes more than LINE_MAX_BYTES of memory."""
    row, end = 0, 0
    while data := file.readline(LINE_MAX_BYTES + 1):
        row += 1
        end += len(data)
        too_long = len(data) > LINE_MAX_BYTES and not data.endswith(b"\n")
        rest = data if too_long else b""
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(LINE_MAX_BYTES)
            end += len(rest)
        yield RawLine(row, data.rstrip(b"\r\n"), too_long, end)


class CutPlan:
    """A cut plan file being read: its whole orders and its faults, in the order of the rows.

    Reads the file twice: first only its order numbers, so that an order whose rows do not
    stand together is refused before its first part went in. ``file`` must be seekable.
    """

    def __init__(self, file: BinaryIO, *, vendor: str) -> None:
        """Read ``file`` from its start; refuse quantities a ``vendor`` database would round."""
        self._file = file
        self._vendor = vendor
        self.offset = 0
        """How many bytes are read."""

    def __iter__(self) -> Iterator[PlannedOrder | Fault]:
        """Yield whole orders and faults; raise HeaderError before the first."""
        with closing(_OrderNumbers()) as numbers:
            for number, rows in _runs(self._rows()):
                numbers.note(number, next(rows).row)
            for number, rows in _runs(self._rows()):
                yield from self._order(number, rows, numbers)

    def _rows(self) -> Iterator[RawLine]:
        self._file.seek(0)
        lines = raw_lines(self._file)
        _check_header(next(lines, None))
        for line in lines:
            self.offset = line.end
            if line.data:
                yield line

    def _order(
        self, number: str, rows: Iterator[RawLine], numbers: "_OrderNumbers"
    ) -> Iterator[PlannedOrder | Fault]:
        gathering = _Gathering(number, self._vendor)
        for line in rows:
            if fault := gathering.take(line):
                yield fault
        if not gathering.row:
            return
        message = numbers.scattered(number) or gathering.fault()
        if message:
            yield Fault(gathering.row, number, message)
        elif not gathering.bad:
            yield gathering.whole()


def _check_header(line: RawLine | None) -> None:
    if line is None:
        raise HeaderError("the file is empty: not even the header is there")
    try:
        found = tuple(_fields(line._replace(data=line.data.removeprefix(BOM))))
    except RowError as error:
        raise HeaderError(f"the header cannot be read: {error}") from error
    if found != HEADER:
        raise HeaderError(f"wrong header {_shown(','.join(found))}: expected {','.join(HEADER)}")


def _runs(rows: Iterator[RawLine]) -> Iterator[tuple[str, Iterator[RawLine]]]:
    """Yield runs of rows with one order number; a row without a usable one joins its run."""
    number = ""

    def own_or_last(line: RawLine) -> str:
        nonlocal number
        number = claimed_number(line.data) or number
        return number

    return groupby(rows, own_or_last)


def claimed_number(data: bytes) -> str:
    """Return the order number that a line begins with; empty: none that could be one."""
    quoted = _QUOTED_FIELD.match(data) if data.startswith(b'"') else None
    first = quoted[1].replace(b'""', b'"') if quoted else data.partition(b",")[0]
    return _usable_number(first) if len(first) <= NUMBER_MAX * 4 else ""


@lru_cache(maxsize=16)
def _usable_number(first: bytes) -> str:
    try:
        return _key(first.decode(), NUMBER_MAX)
    except (UnicodeDecodeError, RowError):
        return ""


class _OrderNumbers:
    """The order numbers of a file on disk: where each begins, in how many parts it comes."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # a temporary file that is removed by itself
        self._database.execute(
            "CREATE TABLE seen (number TEXT PRIMARY KEY, row INT, parts INT) WITHOUT ROWID"
        )

    def close(self) -> None:
        self._database.close()

    def note(self, number: str, row: int) -> None:
        self._database.execute(
            "INSERT INTO seen VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET parts = parts + 1",
            (number, row),
        )

    def scattered(self, number: str) -> str:
        """Return what is wrong with an order that comes in several parts; else nothing."""
        found = self._database.execute(
            "SELECT row, parts FROM seen WHERE number = ?", (number,)
        ).fetchone()
        if not number or not found or found[1] == 1:
            return ""
        return (
            f"the rows of an order must stand together: this one begins in row {found[0]}"
            f" and comes in {found[1]} parts"
        )


@dataclass
class _Gathering:
    """The rows of one order while they are read; at most LINES_MAX of them are kept."""

    number: str
    vendor: str
    row: int = 0
    rows: int = 0
    bad: bool = False
    raw_board: list[str] = field(default_factory=list)
    board: Board | None = None
    board_row: int = 0
    lines: dict[int, PlannedLine] = field(default_factory=dict)

    def take(self, line: RawLine) -> Fault | None:
        """Add a row, or return its fault."""
        own = claimed_number(line.data)
        if own:
            self.rows += 1
            self.row = self.row or line.row
        try:
            self._add(line)
        except RowError as error:
            # A row without a number is nobody's: if it is missed, the order does not add up.
            self.bad = self.bad or bool(own)
            return Fault(line.row, own or _shown_number(line.data), str(error))
        return None

    def fault(self) -> str:
        """Return what is wrong with the order as a whole; nothing, if its rows are bad."""
        if self.rows > LINES_MAX:
            return f"the order has {self.rows} rows: at most {LINES_MAX} are possible"
        if self.bad or not self.board:
            return ""
        total = sum(line.quantity for line in self.lines.values())
        if total != self.board.quantity:
            there, wanted = quantity_text(Decimal(total)), quantity_text(self.board.quantity)
            return f"the lines add up to {there}, not to the board's {wanted}"
        return ""

    def whole(self) -> PlannedOrder:
        """Return the order, whose rows are all good."""
        if self.board is None:
            raise RowError("an order without rows")
        lines = tuple(sorted(self.lines.values()))
        return PlannedOrder(self.row, self.number, self.board, lines)

    def _add(self, line: RawLine) -> None:
        fields = _fields(line)
        if len(fields) != len(HEADER):
            raise RowError(f"the row has {len(fields)} fields instead of {len(HEADER)}")
        problems = _Problems()
        problems.parse("order_number", fields[0], lambda text: _key(text, NUMBER_MAX))
        board = self._board_of(fields[1:5], problems)
        planned = self._line_of(fields[5:], problems)
        problems.raise_if_any()
        self._join(board, planned, line.row)

    def _board_of(self, raw: list[str], problems: "_Problems") -> Board | None:
        if raw == self.raw_board:
            return self.board
        code, sku, quantity, unit = raw
        board = Board(
            problems.parse("board_code", code, lambda text: _key(text, CODE_MAX)),
            problems.parse("board_sku", sku, lambda text: _key(text, SKU_MAX)),
            problems.parse("board_quantity", quantity, self._quantity),
            problems.parse("unit", unit, lambda text: _key(text, UNIT_MAX)),
        )
        if not problems and not self.board:
            self.raw_board = raw
        return board

    def _line_of(self, raw: list[str], problems: "_Problems") -> PlannedLine:
        line, kind, sku, quantity = raw
        return PlannedLine(
            problems.parse("line", line, _line_number),
            problems.parse("kind", kind, _kind),
            problems.parse("sku", sku, lambda text: _key(text, SKU_MAX)),
            problems.parse("quantity", quantity, self._quantity),
        )

    def _quantity(self, text: str) -> Decimal:
        return _quantity(text, self.vendor)

    def _join(self, board: Board | None, planned: PlannedLine, row: int) -> None:
        if self.board is None:
            self.board, self.board_row = board, row
        elif board != self.board:
            raise RowError(f"the board's columns differ from those of row {self.board_row}")
        if self.rows > LINES_MAX:
            self.lines.clear()  # too many in any case: fault() says so once
        elif planned.line in self.lines:
            raise RowError(f"line {planned.line} is there twice in this order")
        else:
            self.lines[planned.line] = planned


class _Problems:
    """What is wrong with the columns of one row."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def parse(self, column: str, text: str, parser: Callable[[str], Any]) -> Any:
        """Return ``parser(text)``; None where that is refused."""
        try:
            return parser(text)
        except RowError as error:
            self._found.append(f"{column} {_shown(text)}: {error}")
            return None

    def raise_if_any(self) -> None:
        if self._found:
            raise RowError("; ".join(self._found))


def _fields(line: RawLine) -> list[str]:
    """Return the columns of one physical line; raise RowError."""
    if line.too_long:
        raise RowError(f"the line is longer than {LINE_MAX_BYTES} bytes")
    try:
        (fields,) = csv.reader([line.data.decode()], strict=True)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise RowError(f"not UTF-8: byte 0x{byte:02x} at position {error.start + 1}") from error
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise RowError("a quoted field does not end on its line") from error
        raise RowError(f"not CSV: {error}") from error
    return fields


def _key(text: str, limit: int) -> str:
    try:
        checked_key(text)
    except ValidationError as error:
        raise RowError(" ".join(error.messages)) from error
    if len(text) > limit:
        raise RowError(f"longer than {limit} characters")
    return text


def _line_number(text: str) -> int:
    if not _LINE_NUMBER.fullmatch(text) or not int(text):
        raise RowError(f"not a whole number from 1 to {LINES_MAX}")
    return int(text)


def _kind(text: str) -> str:
    if text not in LineKind.values:
        raise RowError(f"unknown, expected {' or '.join(LineKind.values)}")
    return text


def _quantity(text: str, vendor: str) -> Decimal:
    if not _QUANTITY.fullmatch(text):
        raise RowError("not a plain decimal number such as 12.5")
    if len(text) > 2 * QUANTITY_DIGITS:
        raise RowError(f"has more than {QUANTITY_DIGITS} digits")
    try:
        quantity = storable_quantity(Decimal(text), vendor)
    except InexactQuantityError as error:
        raise RowError(str(error).removeprefix(f"{Decimal(text)} ")) from error
    if quantity <= 0:
        raise RowError("not greater than zero")
    return quantity


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…")


def _shown_number(data: bytes) -> str:
    """Return what stands where the order number should be, as far as it can be read."""
    first = data[: 4 * KEY_MAX_LENGTH].decode("utf-8", "replace").partition(",")[0]
    return first[:KEY_MAX_LENGTH]
