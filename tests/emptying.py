"""What is done between tests that commit: tables are emptied, and no more than that.

Django would also make all permissions and content types anew, which takes ten times as long.
"""

from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management.color import no_style
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import TransactionTestCase

KEPT = (ContentType, Permission)
_by_django = TransactionTestCase._fixture_teardown  # type: ignore[attr-defined]
_at_first: list[int] = []


def keep_permissions() -> None:
    """Let what migrations made of these tables stay, from now on; the database is new."""
    _at_first[:] = _counts()
    TransactionTestCase._fixture_teardown = _empty  # type: ignore[attr-defined]


def _counts() -> list[int]:
    return [model._default_manager.count() for model in KEPT]


def _empty(case: TransactionTestCase) -> None:
    if case.available_apps is not None or case.serialized_rollback or _counts() != _at_first:
        _by_django(case)
        return
    for alias in case._databases_names(include_mirrors=False):  # type: ignore[attr-defined]
        _empty_tables(connections[alias])


def _empty_tables(connection: BaseDatabaseWrapper) -> None:
    names = connection.introspection.django_table_names(only_existing=True, include_views=False)
    emptied = [name for name in names if name not in {it._meta.db_table for it in KEPT}]
    connection.ops.execute_sql_flush(connection.ops.sql_flush(no_style(), emptied))
