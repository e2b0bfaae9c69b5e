"""What audit records can be about: each app registers its targets and actions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from django.db.models import Model, QuerySet
from django.utils.translation import gettext as _

from recovery.admin.tables import Table, link, list_of
from recovery.models import AuditEntry, AuditRecord

SHOWN_RECORDS = 20

Find = Callable[[str], Model | None]


@dataclass(frozen=True)
class Target:
    """A kind of target: how its row is found, and what is audited of it."""

    type: str
    find: Find
    actions: tuple[str, ...]


_targets: dict[str, Target] = {}


def register(target_type: str, find: Find, *, actions: Iterable[str]) -> None:
    """Let records of ``target_type`` be found, filtered by action and linked to their row."""
    _targets[target_type] = Target(target_type, find, tuple(actions))


def types() -> list[str]:
    """Return the types of target there are."""
    return sorted(_targets)


def actions() -> list[str]:
    """Return the actions there are."""
    return sorted({action for target in _targets.values() for action in target.actions})


def target_of(record: AuditEntry) -> Model | None:
    """Return the row a record is about, if it is still there."""
    target = _targets.get(record.target_type)
    return target.find(record.target_id) if target else None


def records_of(target_type: str, target_id: str) -> "QuerySet[AuditRecord]":
    """Return the records about one target, newest first."""
    return AuditRecord.objects.filter(target_type=target_type, target_id=target_id).order_by("-id")


def newest_record(target_type: str, target_id: str) -> AuditRecord | None:
    """Return the newest record about one target, without its JSON."""
    records = records_of(target_type, target_id).defer("before", "after", "evidence")
    return records.first()


def records_table(target_type: str, target_id: str) -> Table:
    """Return a table of the newest records about one target."""
    records = records_of(target_type, target_id).defer("before", "after", "evidence")
    return Table(
        title=_("Audit records"),
        columns=(_("At"), _("Actor"), _("Action"), _("Reason")),
        rows=[(it.at, it.actor, link(it, it.action), it.reason) for it in records[:SHOWN_RECORDS]],
        empty=_("Nothing has been changed by hand or repaired."),
        more=(list_of(AuditRecord, q=f"{target_type}/{target_id}"), _("All audit records")),
    )
