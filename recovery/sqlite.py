"""Exact sums on SQLite, whose own SUM adds floats."""

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.models import DecimalField, Sum
from django.dispatch import receiver

from recovery.fields import QUANTITY_PLACES

if TYPE_CHECKING:
    _DecimalField = DecimalField[Decimal | str | int, Decimal]
else:
    _DecimalField = DecimalField

TOTAL_DIGITS = 65  # what MySQL and MariaDB can hold at most
_PLACES = Decimal(1).scaleb(-QUANTITY_PLACES)


class _ExactSum:
    """Aggregate for SQLite: adds decimals, answers text."""

    def __init__(self) -> None:
        self.total: Decimal | None = None

    def step(self, value: float | str | None) -> None:
        if value is not None:
            self.total = (self.total or Decimal(0)) + Decimal(str(value)).quantize(_PLACES)

    def finalize(self) -> str | None:
        return None if self.total is None else str(self.total)


@receiver(connection_created)
def _teach_exact_sum(connection: BaseDatabaseWrapper, **_kwargs: Any) -> None:
    if connection.vendor == "sqlite":
        connection.connection.create_aggregate("exact_sum", 1, _ExactSum)


class TotalField(_DecimalField):
    """A sum of quantities; unlike DecimalField's, its value is never read as a float."""

    def get_internal_type(self) -> str:
        """Keep SQLite's converter for decimals away, which takes floats only."""
        return "TotalField"

    def from_db_value(self, value: Any, *_args: Any) -> Decimal | None:
        """Return the text of exact_sum, or the server's decimal, as a Decimal."""
        return None if value is None else Decimal(value)


class ExactSum(Sum):
    """``Sum`` of a quantity that is exact on every database; its value is a Decimal or None."""

    def _resolve_output_field(self) -> TotalField:
        return TotalField(max_digits=TOTAL_DIGITS, decimal_places=QUANTITY_PLACES)

    def as_sqlite(self, compiler: Any, connection: BaseDatabaseWrapper, **kwargs: Any) -> Any:
        """Use the aggregate that adds decimals."""
        return super().as_sql(compiler, connection, function="exact_sum", **kwargs)
