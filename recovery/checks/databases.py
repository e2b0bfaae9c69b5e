"""The database: its version, the session, the tables as the migrations made them.

For ``manage.py check --database default`` and ``migrate``; other commands do not ask.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004
from django.db import connections

from recovery.trail import guards

MARIADB_SINCE, MYSQL_SINCE = (10, 6), (8, 0)
CHARSET, ENGINE = "utf8mb4", "InnoDB"
UTC = ("+00:00", "UTC")
NAMED = 3
"""So many tables or columns are named; the others are counted."""

TABLES = """
SELECT TABLE_NAME, ENGINE, TABLE_COLLATION FROM information_schema.TABLES
 WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'BASE TABLE' ORDER BY TABLE_NAME
"""
COLUMNS = """
SELECT TABLE_NAME, COLUMN_NAME, COLLATION_NAME FROM information_schema.COLUMNS
 WHERE TABLE_SCHEMA = DATABASE() AND COLLATION_NAME IS NOT NULL ORDER BY TABLE_NAME, COLUMN_NAME
"""


@register(Tags.database)
def check_database(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_kwargs: Any
) -> list[CheckMessage]:
    """Check each database in use that is a server."""
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection: Any = connections[alias]  # its vendor's own attributes are not declared
        if connection.vendor == "mysql":
            found += [*_version(connection), *_session(connection), *_schema(connection)]
            found += _guards(alias)
    return found


def _guards(alias: str) -> Iterator[CheckMessage]:
    """Audit records are kept by triggers, too, once their table is there."""
    if not settings.AUDIT_TRIGGERS or "recovery_auditarchive" not in _tables(alias):
        return
    if missing := guards.missing(alias):
        yield Warning(
            f"Audit records of database {alias!r} can be changed and deleted by whoever may write"
            f" to it: {', '.join(missing)} missing.",
            hint="Run migrate, or let an administrator run what `audit guard --sql` prints;"
            " AUDIT_TRIGGERS=false where that is not to be.",
            id="recovery.W034",
        )


def _tables(alias: str) -> list[str]:
    with connections[alias].cursor() as cursor:
        return list(connections[alias].introspection.table_names(cursor))


def _version(connection: Any) -> Iterator[CheckMessage]:
    is_mariadb = connection.mysql_is_mariadb
    name, since = ("MariaDB", MARIADB_SINCE) if is_mariadb else ("MySQL", MYSQL_SINCE)
    if connection.mysql_version < since:
        yield Error(
            f"The server of database {connection.alias!r} is {name}"
            f" {_dotted(connection.mysql_version)}, which does not know SKIP LOCKED:"
            " two workers would wait for each other's rows.",
            hint=f"Upgrade it to {name} {_dotted(since)} or newer.",
            id="recovery.E010",
        )


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def _session(connection: Any) -> Iterator[CheckMessage]:
    isolation_variable = "tx" if connection.mysql_is_mariadb else "transaction"
    ((isolation, time_zone, charset, lock_wait_s),) = _rows(
        connection,
        f"SELECT @@{isolation_variable}_isolation, @@session.time_zone,"
        " @@character_set_connection, @@innodb_lock_wait_timeout",
    )
    yield from _isolation(connection.alias, isolation)
    yield from _time_zone(connection.alias, time_zone)
    yield from _charset(connection.alias, charset)
    yield from _lock_wait(connection.alias, lock_wait_s)


def _rows(connection: Any, sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def _isolation(alias: str, isolation: str) -> Iterator[CheckMessage]:
    if isolation != "READ-COMMITTED":
        yield Error(
            f"Sessions of database {alias!r} run at {isolation}:"
            " a worker's claim would lock out everybody who publishes.",
            hint="Take isolation_level out of DATABASE_URL's query: READ COMMITTED is set.",
            id="recovery.E006",
        )


def _time_zone(alias: str, time_zone: str) -> Iterator[CheckMessage]:
    if time_zone not in UTC:
        yield Error(
            f"The session time zone of database {alias!r} is {time_zone}: rows hold UTC, so what"
            " is due, stuck or expired would be judged hours off.",
            hint="Take init_command out of DATABASE_URL's query, or add time_zone='+00:00' to it.",
            id="recovery.E007",
        )


def _charset(alias: str, charset: str) -> Iterator[CheckMessage]:
    if charset != CHARSET:
        yield Error(
            f"Sessions of database {alias!r} speak {charset}:"
            " names and error texts that it cannot write would be refused or mangled.",
            hint=f"Take charset out of DATABASE_URL's query: {CHARSET} is set.",
            id="recovery.E008",
        )


def _lock_wait(alias: str, lock_wait_s: int) -> Iterator[CheckMessage]:
    ttl = settings.JOB_LOCK_TTL_SEC
    if lock_wait_s >= ttl:
        yield Warning(
            f"The server of database {alias!r} lets a statement wait {lock_wait_s} s for a row,"
            f" which is not shorter than JOB_LOCK_TTL_SEC={ttl}: a run that has to wait loses"
            " its lease and its work.",
            hint=f"Set JOB_LOCK_TTL_SEC above {lock_wait_s}, or innodb_lock_wait_timeout below it"
            " (in init_command).",
            id="recovery.W008",
        )


def _schema(connection: Any) -> Iterator[CheckMessage]:
    """Judge the tables of this project's models; those not made yet are passed over."""
    models = apps.get_models(include_auto_created=True)
    ours = {model._meta.db_table for model in models}
    tables = [row for row in _rows(connection, TABLES) if row[0] in ours]
    columns = [row for row in _rows(connection, COLUMNS) if row[0] in ours]
    yield from _engines(connection.alias, tables)
    yield from _charsets(connection.alias, tables, columns)
    yield from _keys(connection.alias, columns, _binary_columns(connection))


def _binary_columns(connection: Any) -> set[tuple[str, str]]:
    """Return table and column of each field that compares byte for byte."""
    return {
        (model._meta.db_table, field.column)
        for model in apps.get_models(include_auto_created=True)
        for field in model._meta.local_concrete_fields
        if field.column and field.db_parameters(connection).get("collation")
    }


def _engines(alias: str, tables: Iterable[tuple[Any, ...]]) -> Iterator[CheckMessage]:
    wrong = [f"{table} ({engine})" for table, engine, _ in tables if engine != ENGINE]
    if wrong:
        yield Error(
            f"Tables of database {alias!r} have no transactions: {_some(wrong)}.",
            hint=f"Run ALTER TABLE … ENGINE={ENGINE} for each.",
            id="recovery.E013",
        )


def _charsets(
    alias: str, tables: Iterable[tuple[Any, ...]], columns: Iterable[tuple[Any, ...]]
) -> Iterator[CheckMessage]:
    wrong = [f"{table} ({collation})" for table, _, collation in tables if _is_other(collation)]
    wrong += [
        f"{table}.{column} ({collation})"
        for table, column, collation in columns
        if _is_other(collation)
    ]
    if wrong:
        yield Error(
            f"Not everything in database {alias!r} is {CHARSET}: {_some(wrong)}."
            " Texts outside that character set would be refused, with error 1366.",
            hint=f"Run ALTER TABLE … CONVERT TO CHARACTER SET {CHARSET} COLLATE {CHARSET}_bin for"
            f" each, and ALTER DATABASE … CHARACTER SET {CHARSET} for tables to come.",
            id="recovery.E011",
        )


def _is_other(collation: str) -> bool:
    return not collation.startswith(f"{CHARSET}_")


def _keys(
    alias: str, columns: Iterable[tuple[Any, ...]], binary: set[tuple[str, str]]
) -> Iterator[CheckMessage]:
    wrong = [
        f"{table}.{column} ({collation})"
        for table, column, collation in columns
        if (table, column) in binary and not collation.endswith("_bin")
    ]
    if wrong:
        yield Error(
            f"Keys in database {alias!r} do not compare byte for byte: {_some(wrong)}."
            " 'a1' and 'A1' would be one key: two SKUs would share an account.",
            hint="Run ALTER TABLE … MODIFY for each column, as manage.py sqlmigrate shows it:"
            f" COLLATE {CHARSET}_bin.",
            id="recovery.E012",
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
