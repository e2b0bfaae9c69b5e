"""What an event key stands for: the apps above register how the row behind it is found."""

from collections.abc import Callable
from typing import Any

from django.db.models import Model

from recovery.admin.tables import NOTHING, link

Find = Callable[[str], Model | None]

_finders: dict[str, Find] = {}


def register(prefix: str, find: Find) -> None:
    """Let keys that begin with ``prefix:`` lead to the row that ``find`` returns for them."""
    _finders[prefix] = find


def link_to(event_key: str) -> Any:
    """Return a link to the row that published ``event_key``, if it is known."""
    find = _finders.get(event_key.partition(":")[0])
    row = find(event_key) if find else None
    return link(row) if row else NOTHING
