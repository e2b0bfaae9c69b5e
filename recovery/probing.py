"""What probes read of the database: over a connection of its own, which gives up in seconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import QuerySet

PATIENCE_S = 2


@contextmanager
def probe_connection() -> Iterator[BaseDatabaseWrapper]:
    """Yield a fresh connection to the default database; close it afterwards.

    A probe must answer while the server hangs, and must not take part in a request's connection.
    """
    probe = connections["default"].copy()
    probe.settings_dict = {**probe.settings_dict, "OPTIONS": _hasty(probe)}
    try:
        yield probe
    finally:
        probe.close()


def _hasty(probe: BaseDatabaseWrapper) -> dict[str, Any]:
    options = dict(probe.settings_dict["OPTIONS"])
    if probe.vendor == "mysql":
        times = ("connect_timeout", "read_timeout", "write_timeout")
        return options | dict.fromkeys(times, PATIENCE_S)
    return options | {"timeout": PATIENCE_S}


def rows(queryset: QuerySet[Any, Any], probe: BaseDatabaseWrapper) -> list[tuple[Any, ...]]:
    """Return the rows of a ``values_list`` read over ``probe``."""
    compiler = queryset.query.get_compiler(connection=probe)
    return [tuple(row) for row in compiler.results_iter()]


def missing_migrations(probe: BaseDatabaseWrapper) -> list[str]:
    """Return the migrations that this code has and the database lacks, as ``app.name``."""
    applied = _applied(probe)
    return [f"{app}.{name}" for app, name in _shipped() if (app, name) not in applied]


@cache
def _shipped() -> list[tuple[str, str]]:
    """Return the migrations on disk: what this process has loaded does not change."""
    return sorted(MigrationLoader(None).graph.nodes)


def _applied(probe: BaseDatabaseWrapper) -> set[tuple[Any, ...]]:
    # Not MigrationRecorder's own look-up: that would go by the alias, over the usual connection.
    recorded = MigrationRecorder.Migration.objects.values_list("app", "name")
    with probe.cursor() as cursor:
        tables = probe.introspection.table_names(cursor)
    return set(rows(recorded, probe)) if recorded.model._meta.db_table in tables else set()
