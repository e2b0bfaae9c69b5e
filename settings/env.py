"""Read typed settings from the environment; every wrong value is one line at the start."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

T = TypeVar("T")

OWN_PREFIXES = (
    "JOB_",
    "SPLIT_",
    "AUDIT_",
    "OUTBOX_",
    "DLQ_",
    "METRICS_",
    "IMPORT_",
    "QCLUSTER_",
    "RECOVERY_",
    "LOGIN_",
    "PROXY_",
    "SESSION_",
    "TRACING_",
)
SPELLING_CUTOFF = 0.85
SHOWN_VALUE_CHARS = 80


class WrongSettingsError(SystemExit):
    """Settings that cannot be used: one line a key, with its value and what is accepted."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Keep the lines; the process leaves with status 2, as for any wrong usage."""
        super().__init__(2)
        self.lines = list(lines)

    def __str__(self) -> str:
        """Return the lines as one text."""
        return "\n".join(self.lines)


class Asked(NamedTuple):
    """What a variable may be, and what it is where it is not set; for people."""

    accepted: str
    default: str


def _written(value: object) -> str:
    """Return a default as it would be written in the environment."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


class Env:
    """Typed look-ups in an environment that remember what was wrong.

    A wrong value yields the default, so that one start names every wrong key;
    ``finish`` then stops the start.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Read from ``environ``, by default the process's own."""
        self.environ = os.environ if environ is None else environ
        self.wrong: list[str] = []
        self.known: dict[str, Asked] = {}

    def refuse(self, key: str, accepted: str, *, secret: bool = False) -> None:
        """Remember that the value of ``key`` is not ``accepted``."""
        value = self.environ.get(key, "")
        shown = "(hidden)" if secret else repr(value[:SHOWN_VALUE_CHARS])
        self.wrong.append(f"setting {key}={shown} is not usable: expected {accepted}")

    def text(self, key: str, default: str = "") -> str:
        """Return the value of ``key`` without outer white space."""
        self.known.setdefault(key, Asked("a text", default))
        return self.environ.get(key, default).strip()

    def _parsed(self, key: str, default: T, parse: Callable[[str], T], accepted: str) -> T:
        self.known[key] = Asked(accepted, _written(default))
        raw = self.text(key)
        if not raw:
            return default
        try:
            return parse(raw)
        except ValueError:
            self.refuse(key, accepted)
            return default

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return a truth value: true/false, yes/no, on/off, 1/0."""
        words = dict.fromkeys(("true", "yes", "on", "1"), True)
        words |= dict.fromkeys(("false", "no", "off", "0"), False)

        def parse(raw: str) -> bool:
            if raw.lower() not in words:
                raise ValueError(raw)
            return words[raw.lower()]

        return self._parsed(key, default, parse, "true or false")

    def integer(self, key: str, default: int, *, low: int, high: int) -> int:
        """Return a whole number from ``low`` to ``high``, both included."""

        def parse(raw: str) -> int:
            number = int(raw)
            if not low <= number <= high:
                raise ValueError(raw)
            return number

        return self._parsed(key, default, parse, f"a whole number from {low} to {high}")

    def number(self, key: str, default: float, *, low: float, high: float) -> float:
        """Return a number from ``low`` to ``high``, both included."""

        def parse(raw: str) -> float:
            number = float(raw)
            if not low <= number <= high:
                raise ValueError(raw)
            return number

        return self._parsed(key, default, parse, f"a number from {low:g} to {high:g}")

    def choice(self, key: str, default: str, accepted: Iterable[str]) -> str:
        """Return one of ``accepted``, compared without regard to case."""
        words = {word.lower(): word for word in accepted}

        def parse(raw: str) -> str:
            if raw.lower() not in words:
                raise ValueError(raw)
            return words[raw.lower()]

        return self._parsed(key, default, parse, "one of " + ", ".join(words.values()))

    def words(self, key: str, default: Iterable[str]) -> list[str]:
        """Return a comma-separated list without empty items."""
        default = list(default)
        self.known[key] = Asked("words with commas between", ",".join(default))
        raw = self.text(key)
        return [item.strip() for item in raw.split(",") if item.strip()] if raw else default

    def period(self, key: str, default: int) -> int:
        """Return a period in seconds that divides a minute, an hour or a day.

        Such periods can be written as a cron line whose ticks are evenly spaced.
        """

        def parse(raw: str) -> int:
            seconds = int(raw)
            if not is_even_period(seconds):
                raise ValueError(raw)
            return seconds

        return self._parsed(
            key,
            default,
            parse,
            "seconds that divide a minute, whole minutes an hour, or whole hours a day",
        )

    def time_zone(self, key: str, default: str) -> str:
        """Return the name of a time zone this host knows."""

        def parse(raw: str) -> str:
            try:
                return ZoneInfo(raw).key
            except (KeyError, OSError) as error:
                raise ValueError(raw) from error

        return self._parsed(key, default, parse, "a time zone such as UTC or Asia/Shanghai")

    def matching(self, key: str, pattern: str, accepted: str) -> str:
        """Return a text that matches ``pattern`` as a whole, or an empty one."""

        def parse(raw: str) -> str:
            if not re.fullmatch(pattern, raw):
                raise ValueError(raw)
            return raw

        return self._parsed(key, "", parse, accepted)

    def url(self, key: str, schemes: Iterable[str], example: str) -> str:
        """Return a URL of one of ``schemes``, or an empty text."""
        accepted = tuple(schemes)

        def parse(raw: str) -> str:
            parts = urlsplit(raw)
            _ = parts.port
            local = parts.scheme in ("sqlite", "unix")
            if parts.scheme not in accepted or not (parts.path if local else parts.hostname):
                raise ValueError(raw)
            return raw

        self.known[key] = Asked(f"a URL such as {example}", "")
        raw = self.text(key)
        try:
            return parse(raw) if raw else ""
        except ValueError:
            self.refuse(key, f"a URL such as {example}", secret="@" in raw)
            return ""

    def misspelt(self) -> list[str]:
        """Return a line for each variable that is nearly the name of a setting of ours."""
        lines = []
        for key in self.environ:
            if key in self.known or not key.startswith(OWN_PREFIXES):
                continue
            near = difflib.get_close_matches(key, self.known, n=1, cutoff=SPELLING_CUTOFF)
            if near:
                lines.append(f"setting {key} is not known: did you mean {near[0]}?")
        return lines

    def finish(self) -> None:
        """Stop the start with one line a wrong key on standard error.

        Raises WrongSettingsError (exit status 2).
        """
        lines = self.wrong + self.misspelt()
        if lines:
            error = WrongSettingsError(lines)
            sys.stderr.write(f"{error}\n")
            raise error


def is_even_period(seconds: int) -> bool:
    """Tell whether ticks every ``seconds`` can be evenly spaced by a cron line."""
    if seconds < 1:
        return False
    if seconds <= 60:
        return 60 % seconds == 0
    if seconds <= 3600:
        return seconds % 60 == 0 and 3600 % seconds == 0
    return seconds % 3600 == 0 and 86400 % seconds == 0


env = Env()
