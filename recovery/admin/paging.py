"""How many rows a list has: counted up to a limit, estimated beyond it."""

from typing import TYPE_CHECKING, Any

from django.core.paginator import Paginator
from django.db import connection
from django.db.models import Model, QuerySet
from django.utils.formats import number_format
from django.utils.functional import cached_property

if TYPE_CHECKING:
    _Paginator = Paginator[Any]
else:
    _Paginator = Paginator

COUNTED_ROWS = 10_000
ROUNDED_TO = 1_000


class CappedPaginator(_Paginator):
    """Counts up to 10,000 rows exactly.

    A larger list without a filter has the size the database estimates.
    """

    object_list: "QuerySet[Any]"

    @cached_property
    def count(self) -> int:
        """Return the number of rows; beyond 10,000 an estimate or just a larger number."""
        keys = self.object_list.order_by().values("pk")
        counted: int = keys[: COUNTED_ROWS + 1].count()
        if counted <= COUNTED_ROWS or self.object_list.query.where:
            return counted
        return max(counted, estimated_rows(self.object_list.model))

    @property
    def is_estimate(self) -> bool:
        """Tell whether the size is more than a lower bound, and not exact."""
        return self.count > COUNTED_ROWS + 1

    @property
    def is_lower_bound(self) -> bool:
        """Tell whether no more is known than that there are more rows than are counted."""
        return self.count == COUNTED_ROWS + 1

    @property
    def count_shown(self) -> str:
        """Return the number of rows for people: rounded where it is an estimate."""
        if self.is_estimate:
            return grouped(round(self.count / ROUNDED_TO) * ROUNDED_TO)
        return grouped(min(self.count, COUNTED_ROWS))


def grouped(number: int) -> str:
    """Return ``number`` with the thousands set apart as the language does."""
    return number_format(number, force_grouping=True)


def estimated_rows(model: type[Model]) -> int:
    """Return about how many rows the table of ``model`` has, without counting them.

    MySQL and MariaDB: from the statistics; SQLite: the span of the ids, an upper bound.
    """
    sql, parameters = _estimate(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        row = cursor.fetchone()
    return int(row[0] or 0) if row else 0


def _estimate(table: str) -> tuple[str, list[str]]:
    if connection.vendor == "mysql":
        return (
            "SELECT table_rows FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = %s",
            [table],
        )
    name = connection.ops.quote_name(table)
    span = f"(SELECT MAX(rowid) FROM {name}) - (SELECT MIN(rowid) FROM {name}) + 1"  # noqa: S608
    return f"SELECT {span}", []
