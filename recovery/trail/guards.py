"""Triggers that hold everybody to what the models hold our code to; MariaDB and MySQL alone."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connections, transaction

from recovery import audit

logger = logging.getLogger(__name__)

TABLE = "recovery_auditrecord"
ASKED = "recovery_auditsealspan"
LOWERED, RAISED = "audit-guards-lowered", "audit-guards-raised"


@dataclass(frozen=True)
class Guard:
    """A trigger of the table of audit records."""

    event: str
    body: str

    @property
    def name(self) -> str:
        """Return the trigger's name."""
        return f"{TABLE}_keeps_{self.event.lower()}"

    def sql(self) -> str:
        """Return the statement that makes it."""
        return f"CREATE TRIGGER {self.name} BEFORE {self.event} ON {TABLE} FOR EACH ROW {self.body}"


GUARDS = (
    Guard(
        "UPDATE",
        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'audit records are never changed'",
    ),
    # The span of an id is the first whose end is not below it: one look into the index.
    Guard(
        "DELETE",
        """
IF NOT COALESCE((
    SELECT span.first_id <= OLD.id AND archive.status = 'written'
      FROM (SELECT first_id, seal_id FROM recovery_auditsealspan
             WHERE last_id >= OLD.id ORDER BY last_id LIMIT 1) AS span
      JOIN recovery_auditseal AS seal ON seal.number = span.seal_id
      JOIN recovery_auditarchive AS archive ON archive.id = seal.archive_id
), FALSE) THEN
    SIGNAL SQLSTATE '45000'
       SET MESSAGE_TEXT = 'audit records are deleted once an archive was verified that has them';
END IF""",
    ),
)


def after_migrate(using: str, **_kwargs: Any) -> None:
    """Put the guards up, if the settings want them; one that is refused is no failure."""
    if not settings.AUDIT_TRIGGERS or connections[using].vendor != "mysql":
        return
    with connections[using].cursor() as cursor:
        if ASKED not in connections[using].introspection.table_names(cursor):
            return  # migrated backwards: they would ask a table that is gone
    try:
        put_up(using)
    except DatabaseError as error:
        logger.warning(
            "audit_guards_refused",
            extra={
                "error": str(error),
                "hint": "audit guard --sql prints them for an administrator",
            },
        )


def put_up(using: str = "default") -> list[str]:
    """Make the guards that are missing or are others; return their names. Raises DatabaseError."""
    standing = dict(_standing(using))
    made = []
    with connections[using].cursor() as cursor:
        for guard in GUARDS:
            if standing.get(guard.name) == _plain(guard.body):
                continue  # a trigger is not made without everybody waiting for a moment
            if getattr(connections[using], "mysql_is_mariadb", False):
                # At once: the table is at no moment without it.
                cursor.execute(guard.sql().replace("CREATE", "CREATE OR REPLACE", 1))
            else:
                cursor.execute(f"DROP TRIGGER IF EXISTS {guard.name}")
                cursor.execute(guard.sql())
            made.append(guard.name)
    return made


def take_down(using: str = "default") -> list[str]:
    """Remove the guards; return the names of those that stood. Raises DatabaseError."""
    standing = [name for name, _body in _standing(using)]
    with connections[using].cursor() as cursor:
        for name in standing:
            cursor.execute(f"DROP TRIGGER IF EXISTS {name}")
    return standing


def lower(*, actor: str, reason: str) -> list[str]:
    """Remove the guards, on the record; return the names of those that stood.

    The record is committed before: MariaDB takes triggers down outside of transactions.
    """
    standing = [name for name, _body in _standing("default")]
    _tell(LOWERED, actor, reason, before=standing, after=[])
    return take_down()


def raise_up(*, actor: str, reason: str) -> list[str]:
    """Make the guards that are missing, on the record; return their names.

    Raises DatabaseError.
    """
    before = [name for name, _body in _standing("default")]
    if made := put_up():
        _tell(RAISED, actor, reason, before=before, after=[it.name for it in GUARDS])
    return made


def _tell(
    action: str, actor: str, reason: str, *, before: Sequence[str], after: Sequence[str]
) -> None:
    with transaction.atomic():
        audit.record(
            actor=actor,
            action=action,
            target_type="database",
            target_id="default",
            reason=reason,
            before={"guards": before},
            after={"guards": after},
        )


def missing(using: str = "default") -> list[str]:
    """Return the names of the guards that do not stand, or are others; [] where there are none."""
    if connections[using].vendor != "mysql":
        return []
    standing = dict(_standing(using))
    return [it.name for it in GUARDS if standing.get(it.name) != _plain(it.body)]


def _standing(using: str) -> Iterator[tuple[str, str]]:
    if connections[using].vendor != "mysql":
        return
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT TRIGGER_NAME, ACTION_STATEMENT FROM information_schema.TRIGGERS"
            " WHERE TRIGGER_SCHEMA = DATABASE() AND EVENT_OBJECT_TABLE = %s",
            [TABLE],
        )
        names = {it.name for it in GUARDS}
        yield from ((name, _plain(body)) for name, body in cursor.fetchall() if name in names)


def _plain(body: str) -> str:
    return re.sub(r"\s+", " ", body).strip()
