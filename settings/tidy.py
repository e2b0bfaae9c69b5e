"""Fields of log records as they are written: plain, bounded, without secrets."""

import json
import math
import re
from collections.abc import Iterable, Mapping, MutableMapping
from itertools import islice
from typing import Any

Event = MutableMapping[str, Any]

WHEN = ("timestamp", "level", "event", "job", "run_id")
ABOUT = ("order", "epoch", "entry", "event_key", "code", "attempt")
LAST = ("exception",)
KEYS = ("event_keys", "targets")
"""Fields that name what a record is about, so that one finds it by the name: kept at length."""
KEPT = ("timestamp", "level", "logger", "job", "run_id", "pid")
"""Fields of our own making, in which no secret is looked for."""
FIELDS = 40
ITEMS = 50
DEPTH = 4
NAME_CHARS = 100
TEXT_CHARS = 4_000
STACK_CHARS = 16_000
KEYS_CHARS = 20_000
LINE_CHARS = 60_000
TIGHTER = (4_000, 1_000, 100)
HIDDEN = "***"
_SECRET_NAME = re.compile(r"passw|secret|token|authorization|cookie|api_?key", re.IGNORECASE)
_CREDENTIALS = re.compile(
    r"(://[^:/@\s]*:)[^/\s]+(?=@)|"
    r"(\bauthorization\W{1,5}(?:(?:basic|bearer|digest|token)\s+)?|\bbearer\s+)[^\s'\",;]+",
    re.IGNORECASE,
)


class Tidy:
    """Makes fields of whatever they are: of plain types, bounded, without secrets."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Hide ``secrets`` wherever they turn up."""
        longest_first = sorted(filter(None, secrets), key=len, reverse=True)
        self.secrets = (
            re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        )

    def __call__(self, _logger: Any, _name: str, event: Event) -> dict[str, Any]:
        """Return the fields to be rendered."""
        others = [name for name in event if name not in {*WHEN, *ABOUT, *LAST}]
        names = [*WHEN, *ABOUT, *others[:FIELDS], *LAST]
        return self._fields({name: event[name] for name in names if name in event}, depth=0)

    def _fields(self, values: Mapping[Any, Any], *, depth: int) -> dict[str, Any]:
        named = ((_text_of(name)[:NAME_CHARS], value) for name, value in values.items())
        return {name: self._field(name, value, depth=depth + 1) for name, value in named}

    def _field(self, name: str, value: Any, *, depth: int) -> Any:
        if depth == 1 and name in KEPT:
            return value if isinstance(value, int) else _cut(_text_of(value), TEXT_CHARS)
        if _SECRET_NAME.search(name):
            return HIDDEN
        if name == "exception":
            return self._text(value, STACK_CHARS)
        if name in KEYS:
            return self._text(value, KEYS_CHARS)
        return self._value(value, depth=depth)

    def _value(self, value: Any, *, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if isinstance(value, Mapping) and depth < DEPTH:
            return self._fields(dict(islice(value.items(), ITEMS)), depth=depth)
        if isinstance(value, list | tuple | set | frozenset) and depth < DEPTH:
            return [self._value(item, depth=depth + 1) for item in islice(value, ITEMS)]
        return self._text(value, TEXT_CHARS)

    def _text(self, value: Any, limit: int) -> str:
        return _cut(self._without_secrets(_cut(_text_of(value), 2 * limit)), limit)

    def _without_secrets(self, text: str) -> str:
        if self.secrets:
            text = self.secrets.sub(HIDDEN, text)
        return _CREDENTIALS.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", text)


def _text_of(value: Any) -> str:
    """Return ``value`` as text that UTF-8 can hold: no lone surrogates."""
    try:
        return str(value).encode("utf-8", "backslashreplace").decode()
    except Exception:  # noqa: BLE001 - whatever its __str__ raises
        return f"<{type(value).__name__} without a text>"


def _cut(text: str, limit: int) -> str:
    """Return ``text``, of a longer one beginning and end: the end of a stack says what happened."""
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}… {len(text) - limit} characters left out …{text[head - limit :]}"


def to_json(_logger: Any, _name: str, event: Event) -> str:
    """Return ``event`` as one line of ASCII, its fields cut until they fit."""
    line = json.dumps(event)
    for limit in TIGHTER:
        if len(line) <= LINE_CHARS:
            break
        line = json.dumps({name: _tightened(value, limit) for name, value in event.items()})
    return line


def _tightened(value: Any, limit: int) -> Any:
    return _cut(_text_of(value), limit) if isinstance(value, str | list | dict) else value


def on_one_line(text: str) -> str:
    """Return ``text`` with what is not to be seen written out.

    That is what could end a line, colour it or turn its letters round: it can forge no record.
    """
    if text.isprintable():
        return text
    return "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)


def to_eyes(_logger: Any, _name: str, event: Event) -> Event:
    """Make texts safe for a terminal; the lines of a stack are indented, as no record is."""
    stack = event.pop("exception", None)
    safe = {on_one_line(name): _safe(value) for name, value in event.items()}
    if isinstance(stack, str):
        safe["exception"] = "\n".join(f"    {on_one_line(it)}" for it in stack.split("\n"))
    return safe


def _safe(value: Any) -> Any:
    return on_one_line(value) if isinstance(value, str) else value
