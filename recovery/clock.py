"""The database's clock, which decides what is due, stuck or expired on every host."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import DateTimeField, ExpressionWrapper, Value
from django.db.models.functions import Now

SQL_NOW = {
    "mysql": "SELECT UTC_TIMESTAMP(6)",
    "sqlite": "SELECT STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')",
}


def db_now() -> datetime:
    """Return the database's time, in UTC (SQLite: to the millisecond)."""
    with connection.cursor() as cursor:
        cursor.execute(SQL_NOW[connection.vendor])
        (value,) = cursor.fetchone()
    naive = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return naive.replace(tzinfo=UTC)


def seconds_from_now(seconds: float) -> "ExpressionWrapper[Any]":
    """Return an expression for the database's time plus ``seconds`` (which may be negative)."""
    return ExpressionWrapper(
        Now() + Value(timedelta(seconds=seconds)), output_field=DateTimeField()
    )
