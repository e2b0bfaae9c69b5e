"""Tables of many rows, which the server itself fills, and the plans of what reads them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Field, Model, QuerySet
from django.test.utils import CaptureQueriesContext

from tests.ledger.test_query_plans import explain, index_of


def store_many(model: type[Model], count: int, /, **given: Any) -> None:
    """Store ``count`` rows in one statement; a field is given as ``Sql`` or by its value."""
    columns: dict[str, tuple[str, list[Any]]] = {}
    for field in model._meta.concrete_fields:
        name = field.name if field.name in given else field.attname
        if name in given:
            columns[str(field.column)] = _expression(field, given[name])
        elif not (field.primary_key or field.null or field.has_db_default()):
            columns[str(field.column)] = _expression(field, field.get_default())
    names = ", ".join(connection.ops.quote_name(name) for name in columns)
    expressions = ", ".join(text for text, _parameters in columns.values())
    table = connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({names}) SELECT {expressions} FROM {_numbers(count)}",
            [it for _text, parameters in columns.values() for it in parameters],
        )


class Sql(str):
    """An expression of ``n``, the number of the row from 1 on."""

    __slots__ = ()


def text(template: str) -> Sql:
    """Return a text with expressions of ``n`` in braces."""
    parts = re.split(r"{(.*?)}", template)
    pieces = [part if at % 2 else f"'{part}'" for at, part in enumerate(parts)]
    return Sql(
        f"CONCAT({', '.join(pieces)})"
        if connection.vendor == "mysql"
        else f"({' || '.join(f'({piece})' for piece in pieces)})"
    )


def moment(seconds: str, start: str = "2026-01-01 00:00:00") -> Sql:
    """Return the time ``seconds``, an expression, after the start."""
    if connection.vendor == "mysql":
        return Sql(f"TIMESTAMPADD(SECOND, {seconds}, '{start}')")
    return Sql(f"STRFTIME('%Y-%m-%d %H:%M:%f', '{start}', ({seconds}) || ' seconds')")


def _expression(field: "Field[Any, Any]", value: Any) -> tuple[str, list[Any]]:
    if isinstance(value, Sql):
        return value.replace("%", "%%"), []
    return "%s", [field.get_db_prep_save(value, connection)]


def _numbers(count: int) -> str:
    if connection.vendor == "mysql":
        return f"(SELECT seq AS n FROM seq_1_to_{count}) AS numbers"
    more = f"SELECT n + 1 FROM numbered WHERE n < {count}"
    return (
        f"(WITH RECURSIVE numbered(n) AS (SELECT 1 UNION ALL {more}) SELECT n FROM numbered)"
        " AS numbers"
    )


def let_plan(*models: type[Model]) -> None:
    """Let MariaDB count what is in the tables of ``models``; SQLite plans without, as it does.

    Nobody has SQLite analyze, unless an earlier test did.
    """
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            for model in models:
                cursor.execute(f"ANALYZE TABLE {model._meta.db_table}")
                cursor.fetchall()
            return
        cursor.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'")
        if cursor.fetchone():
            cursor.execute("DROP TABLE sqlite_stat1")
            connection.close()  # what is read of it stays with the connection


def reads_at_most(most: int, action: Callable[[], Any]) -> bool:
    """Tell whether ``action`` looks at so few rows; on SQLite, which counts none, only run it."""
    if connection.vendor == "mysql":
        return rows_examined(action) <= most
    action()
    return True


def rows_examined(action: Callable[[], Any]) -> int:
    """Return how many rows and index entries the server looks at for ``action`` (MariaDB)."""
    before = _examined()
    action()
    middle = _examined()
    return (middle - before) - (_examined() - middle)


def _examined() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_%'")
        found = {name: int(value) for name, value in cursor.fetchall()}
    read = sum(value for name, value in found.items() if name.startswith("Handler_read"))
    # Entries that the storage engine passes by are not counted as read.
    return read + found["Handler_icp_attempts"] - found["Handler_icp_match"]


@dataclass(frozen=True)
class Plan:
    """What the database would do: its indexes, and all it says."""

    indexes: frozenset[str]
    text: str

    @property
    def sorts(self) -> bool:
        """Tell whether rows are sorted, and not read in the order of an index."""
        return "filesort" in self.text or "TEMP B-TREE" in self.text

    @property
    def scans(self) -> bool:
        """Tell whether a whole table is read."""
        return "'type': 'ALL'" in self.text or bool(re.search(r"SCAN (?!.*INDEX)", self.text))


def plan_of(queryset: "QuerySet[Any]") -> Plan:
    """Return the database's plan for a query."""
    return _plan(*queryset.query.sql_with_params())


def plans_of(action: Callable[[], Any], table: str) -> list[Plan]:
    """Return the plans of the statements on ``table`` that ``action`` executes."""
    with CaptureQueriesContext(connection) as queries:
        action()
    return [_plan(it["sql"].replace("%", "%%")) for it in queries if table in it["sql"]]


def _plan(sql: str, parameters: Any = ()) -> Plan:
    steps = explain(sql, parameters)
    names = {name for step in steps for name in _index_of(step).split("|")}  # of a rowid filter
    return Plan(frozenset(names - {""}), str(steps))


def _index_of(step: dict[str, Any]) -> str:
    return "PRIMARY" if "INTEGER PRIMARY KEY" in step.get("detail", "") else index_of(step)
