"""What a preview rests on: what would differ, and whether anybody holds a row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, InterfaceError, transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from recovery.actions import Action, RowHeldError
from recovery.admin.tables import NOTHING
from recovery.errors import is_infrastructure

NAMES = {
    "status": gettext_lazy("status"),
    "attempts": gettext_lazy("attempts"),
    "code": gettext_lazy("error code"),
    "next_attempt_at": gettext_lazy("next attempt at"),
    "content_hash": gettext_lazy("content hash"),
    "in_progress": gettext_lazy("in progress"),
    "epoch": gettext_lazy("epoch"),
    "next_finalize_at": gettext_lazy("next finalize at"),
    "publishes": gettext_lazy("publishes"),
    "holds_back": gettext_lazy("entries held back"),
    "later_posted": gettext_lazy("later entries posted already"),
}
HELD, FREE, UNKNOWN = "held", "none", "unknown"


@dataclass(frozen=True)
class Change:
    """A fact that would differ."""

    name: Any
    before: Any
    after: Any


@dataclass(frozen=True)
class Proof:
    """Whether a live database transaction holds a row."""

    state: str
    text: Any
    facts: Mapping[str, Any]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return the facts of ``after`` that differ from ``before``; a diff is shown by itself."""
    return list(_changes(before, after))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[Change]:
    for name, value in after.items():
        if name != "diff" and before.get(name) != value:
            label = NAMES.get(name, name)
            yield Change(label, _fact(name, before.get(name)), _fact(name, value))


def _fact(name: str, value: Any) -> Any:
    if name == "status" and value:
        return _(str(value))  # the values are the English labels
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return NOTHING if value is None or value == "" else value


def proof(action: Action[Any], row_id: int) -> Proof:
    """Try to lock a row without waiting, and let it go again; say who holds it if that fails."""
    try:
        with transaction.atomic():
            action.lock(row_id)
            transaction.set_rollback(True)
    except RowHeldError:
        holder = action.holder(row_id) or {}
        return Proof(HELD, _("held by a live transaction: it would be left alone"), holder)
    except (DatabaseError, InterfaceError) as error:
        if not is_infrastructure(error):
            raise
        return Proof(UNKNOWN, _("the database is too busy to tell"), {})
    return Proof(FREE, _("no live transaction holds it"), {})
