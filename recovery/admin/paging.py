"""Pages of lists that may hold millions of rows: counted up to a limit, estimated beyond it."""

from math import ceil
from typing import TYPE_CHECKING, Any

from django.core.paginator import Page, Paginator
from django.db import connection
from django.db.models import Model, QuerySet
from django.utils.formats import number_format
from django.utils.functional import cached_property

if TYPE_CHECKING:
    _Paginator = Paginator[Any]
else:
    _Paginator = Paginator

PAGED_ROWS = 10_000
ROUNDED_TO = 1_000


class CappedPaginator(_Paginator):
    """Counts up to 10,000 rows exactly and lets as many be paged through.

    A larger list without a filter has the size the database estimates.
    """

    object_list: "QuerySet[Any]"
    unfiltered: "QuerySet[Any] | None" = None
    """The list without its filters, to read rows whose keys are known."""

    @cached_property
    def count(self) -> int:
        """Return the number of rows; beyond 10,000 an estimate or just a larger number."""
        keys = self.object_list.order_by().values("pk")
        counted: int = keys[: PAGED_ROWS + 1].count()
        if counted <= PAGED_ROWS or self.is_filtered:
            return counted
        return max(counted, estimated_rows(self.object_list.model))

    @property
    def is_filtered(self) -> bool:
        """Tell whether the list shows a part of its table."""
        return bool(self.object_list.query.where)

    @property
    def is_capped(self) -> bool:
        """Tell whether there are more rows than can be paged through."""
        return self.count > PAGED_ROWS

    @property
    def is_estimate(self) -> bool:
        """Tell whether the size is more than a lower bound, and not exact."""
        return self.count > PAGED_ROWS + 1

    @cached_property
    def num_pages(self) -> int:
        """Return how many pages can be had: deep ones read all rows before them."""
        return min(super().num_pages, ceil(PAGED_ROWS / self.per_page))

    def page(self, number: int | str) -> "Page[Any]":
        """Return a page; its keys are read first, from the index alone, unless that is for nothing.

        Asked for whole rows far down or in another order than that of the ids, MariaDB sorts
        the table instead of following an index.
        """
        number = self.validate_number(number)
        bottom = (number - 1) * self.per_page
        if self.unfiltered is None or (not bottom and self._newest_first()):
            return super().page(number)
        keys = self.object_list.prefetch_related(None).values_list("pk", flat=True)
        wanted = list(keys[bottom : bottom + self.per_page])
        # Without the filter: SQLite would rather walk its index than look the keys up.
        rows = {row.pk: row for row in self.unfiltered.order_by().filter(pk__in=wanted)}
        return Page([rows[pk] for pk in wanted if pk in rows], number, self)

    def _newest_first(self) -> bool:
        return self.object_list.query.order_by[:1] == ("-id",)

    @property
    def count_shown(self) -> str:
        """Return the number of rows for people: rounded where it is an estimate."""
        rounded = round(self.count / ROUNDED_TO) * ROUNDED_TO if self.is_estimate else self.count
        return grouped(rounded)

    @property
    def most_shown(self) -> str:
        """Return how many rows can be paged through, for people."""
        return grouped(PAGED_ROWS)


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
