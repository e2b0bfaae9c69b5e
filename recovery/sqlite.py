"""Exact sums on SQLite, whose own SUM adds floats."""

from decimal import Decimal
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.models import Sum
from django.dispatch import receiver

from recovery.fields import QUANTITY_PLACES

_PLACES = Decimal(1).scaleb(-QUANTITY_PLACES)


class _ExactSum:
    """Aggregate for SQLite: adds decimals, answers text."""

    def __init__(self) -> None:
        self.total: Decimal | None = None

    def step(self, value: float | str | None) -> None:
        if value is not None:
            self.total = (self.total or Decimal(0)) + Decimal(repr(value)).quantize(_PLACES)

    def finalize(self) -> str | None:
        return None if self.total is None else str(self.total)


@receiver(connection_created)
def _teach_exact_sum(connection: BaseDatabaseWrapper, **_kwargs: Any) -> None:
    if connection.vendor == "sqlite":
        connection.connection.create_aggregate("exact_sum", 1, _ExactSum)


class ExactSum(Sum):
    """``Sum`` of a quantity that is exact on every database; its value is a Decimal or None."""

    def as_sqlite(self, compiler: Any, connection: BaseDatabaseWrapper, **kwargs: Any) -> Any:
        """Use the aggregate that adds decimals."""
        return super().as_sql(compiler, connection, function="exact_sum", **kwargs)

    def get_db_converters(self, connection: BaseDatabaseWrapper) -> list[Any]:
        """Take SQLite's text as it is."""
        if connection.vendor == "sqlite":
            return [lambda value, *_: None if value is None else Decimal(value)]
        return super().get_db_converters(connection)
