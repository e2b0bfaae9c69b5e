"""Ages as people type them: ``90``, ``15m``, ``2h``, ``7d``, ``2w``."""

import re
from datetime import datetime, timedelta

from django.utils import timezone

FORM = "90s, 30m, 24h, 7d, 2w"
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

LONGEST_S = 3_155_760_000
"""A hundred years: with more, a database's time may leave its calendar."""

_parts = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)([smhdw]?)").fullmatch


def seconds_of(text: str) -> float:
    """Return the seconds of an age; without a unit they are meant. Raises ValueError."""
    found = _parts(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no age such as {FORM}")
    seconds = float(found[1]) * UNITS_S[found[2]]
    if seconds > LONGEST_S:
        raise ValueError(f"{text!r} is longer ago than anything here")
    return seconds


def moment_of(text: str, now: datetime) -> datetime:
    """Return the moment that a time or an age stands for; raise ValueError.

    A time without a zone is one of the site's.
    """
    text = text.strip()
    try:
        if text[-1:] in UNITS_S:
            return now - timedelta(seconds=seconds_of(text))
        moment = datetime.fromisoformat(text)
        aware = moment if timezone.is_aware(moment) else timezone.make_aware(moment)
        return aware.astimezone(now.tzinfo)
    except OverflowError as error:
        raise ValueError(f"{text!r} is in no calendar") from error
