"""Tables are emptied after a test, and what is the same after each of them is not made anew.

Django empties all tables and makes content types and permissions again, which takes longer than
many a test. They are kept where they are still those that Django made.
"""

from typing import Any

from django.apps import apps
from django.core.management.commands import flush
from django.core.management.sql import emit_post_migrate_signal, sql_flush
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_migrate

KEPT = {"auth_permission", "django_content_type"}
MADE_BY_DJANGO = (
    "SELECT app_label, model, NULL, NULL FROM django_content_type",
    "SELECT app_label, model, codename, auth_permission.name FROM auth_permission"
    " JOIN django_content_type ON django_content_type.id = content_type_id",
)
_made: dict[str, set[Any]] = {}


def keep_what_stays() -> None:
    """Let ``flush`` keep what Django makes, from its second time on."""
    setattr(flush, "sql_flush", _empty)  # noqa: B010 - the stubs do not know it
    setattr(flush, "emit_post_migrate_signal", _tell)  # noqa: B010


def _rows(connection: BaseDatabaseWrapper) -> list[Any]:
    found: list[Any] = []
    with connection.cursor() as cursor:
        for query in MADE_BY_DJANGO:
            cursor.execute(query)
            found += cursor.fetchall()
    return found


def _are_made(connection: BaseDatabaseWrapper) -> bool:
    rows, made = _rows(connection), _made.get(connection.alias)
    return made is not None and len(rows) == len(made) and set(rows) == made


def _empty(style: Any, connection: BaseDatabaseWrapper, **options: Any) -> list[str]:
    if not _are_made(connection):
        return sql_flush(style, connection, **options)
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    return connection.ops.sql_flush(style, [it for it in tables if it not in KEPT], **options)


def _tell(verbosity: int, interactive: bool, db: str, **options: Any) -> None:
    if not _are_made(connections[db]):
        emit_post_migrate_signal(verbosity, interactive, db, **options)
        _made[db] = set(_rows(connections[db]))
        return
    ours = apps.get_app_config("recovery")  # it has something of its own to do
    post_migrate.send(
        sender=ours,
        app_config=ours,
        verbosity=verbosity,
        interactive=interactive,
        using=db,
        **options,
    )
