"""Names of what drills make: ``DRILL-<UTC time>-<random>`` begins each code and number."""

import re
import secrets
from datetime import datetime

from django.db.models import Q

SKU = "DRILL"
_CODE = re.compile(r"DRILL-\d{8}T\d{6}Z-[0-9a-f]{6}")
_BEHIND_ALL = "~"
"""Sorts behind whatever follows a code in what is named after it."""


def new_code(now: datetime) -> str:
    """Return the code of a drill that begins ``now``."""
    return f"DRILL-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def code_of(name: str) -> str:
    """Return the code of the drill that ``name`` is from; empty: from none."""
    found = _CODE.match(name)
    return found[0] if found else ""


def is_drill(name: str) -> bool:
    """Tell whether the order or board ``name`` is a drill's."""
    return bool(code_of(name))


def named(column: str, code: str = "DRILL-") -> Q:
    """Return the condition that ``column`` begins with ``code``: a range of its index."""
    return Q(**{f"{column}__gte": code, f"{column}__lt": code + _BEHIND_ALL})
