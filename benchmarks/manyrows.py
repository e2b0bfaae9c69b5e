"""Many rows by one statement: MariaDB makes them of numbers, nothing is sent."""

import re
from typing import Any

from django.db import connection
from django.db.models import Model


class Sql(str):
    """An expression of ``n``, the number of the row from 1 on."""

    __slots__ = ()


def text(template: str) -> Sql:
    """Return a text with expressions of ``n`` in braces."""
    parts = re.split(r"{(.*?)}", template)
    pieces = (part if at % 2 else f"'{part}'" for at, part in enumerate(parts))
    return Sql(f"CONCAT({', '.join(pieces)})")


def store(model: type[Model], count: int, **given: Any) -> None:
    """Store ``count`` rows; a column is given as ``Sql`` or by its value, or has a default."""
    columns: dict[str, Any] = {}
    for field in model._meta.concrete_fields:
        name, column = field.attname, str(field.column)
        if isinstance(given.get(name), Sql):
            columns[column] = given[name]
        elif name in given:
            columns[column] = field.get_db_prep_save(given[name], connection)
        elif not (field.primary_key or field.null or field.has_db_default()):
            columns[column] = field.get_db_prep_save(field.get_default(), connection)
    expressions = [
        value.replace("%", "%%") if isinstance(value, Sql) else "%s" for value in columns.values()
    ]
    names = ", ".join(f"`{name}`" for name in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {model._meta.db_table} ({names}) SELECT {', '.join(expressions)}"
            f" FROM (SELECT seq AS n FROM seq_1_to_{count}) AS numbers",
            [value for value in columns.values() if not isinstance(value, Sql)],
        )


def analyze(*models: type[Model]) -> None:
    """Let the server look at how the values in these tables are spread."""
    with connection.cursor() as cursor:
        for model in models:
            cursor.execute(f"ANALYZE TABLE {model._meta.db_table}")
            cursor.fetchall()
