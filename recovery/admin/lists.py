"""Lists that only do what an index serves: their order, their filters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ALL_VAR, ORDER_VAR, ChangeList
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _

from recovery.admin.keyset import Keyset, Page

if TYPE_CHECKING:
    from recovery.admin.rows import ReadOnlyAdmin

AFTER, BEFORE = "after", "before"
"""Parameters of a list's address: the key of the row before the page, or behind it."""

Choice = tuple[str, Any]


class IndexedChangeList(ChangeList):
    """A list in the order of an index, to be turned round by clicking its one sortable column.

    Django sorts by any column that an address names, and ties by descending id, which makes
    the database sort the whole table.
    """

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str | None] | None = None
    ) -> QuerySet[Any]:
        """Return the rows of the list, all pages of them, without what lists do not show."""
        for name in (AFTER, BEFORE):  # neither a filter nor kept in links
            self.params.pop(name, None)
            self.filter_params.pop(name, None)
        found = super().get_queryset(request, exclude_parameters)
        rows: QuerySet[Any] = self._admin.for_list(found)
        return rows

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        """Return the order of the admin, turned round if asked for."""
        ordering = self._ordering = self._admin.get_ordering(request)
        return [turned(name) for name in ordering] if self._is_turned(ordering) else list(ordering)

    def get_ordering_field_columns(self) -> dict[int, Literal["desc", "asc"]]:
        """Return which column shows the arrow, and whether it points down."""
        column = self._sortable_column()
        if column is None:
            return {}
        return {column: "desc" if self._is_descending(self._ordering) else "asc"}

    def get_results(self, request: HttpRequest) -> None:
        """Read the page that the address asks for."""
        self.paginator = self.model_admin.get_paginator(request, self.queryset, self.list_per_page)
        self.result_count = self.paginator.count
        self.full_result_count = self.result_count  # or the skin says it counted a part
        self.show_full_result_count = False
        self.show_admin_actions = True
        self.can_show_all = self.result_count <= self.list_max_show_all
        self.keyset = Keyset(self.queryset, self._key_order(), self.list_per_page)
        self.page = self._page(request)
        self.result_list = self.page.rows

    def _key_order(self) -> list[str]:
        """Return the list's order without the columns of its filters."""
        filters: Sequence[Any] = self.filter_specs
        of_one_value = {it.column for it in filters if it.value() is not None}
        names = self.queryset.query.order_by
        return [name for name in names if name.removeprefix("-") not in of_one_value]

    def _page(self, request: HttpRequest) -> Page:
        if self.show_all and self.can_show_all:
            return Page(list(self.queryset))
        if BEFORE in request.GET:
            return self.keyset.before(request.GET[BEFORE])
        return self.keyset.after(request.GET.get(AFTER, ""))

    def ways(self) -> list[tuple[str, str | None]]:
        """Return links to other pages; one without an address leads nowhere from this page."""
        before, after = self.page.before, self.page.after
        if before is None and after is None:
            return []
        link = self.get_query_string
        found = [
            (_("First"), None if before is None else link()),
            (_("Previous"), None if before is None else link({BEFORE: before})),
            (_("Next"), None if after is None else link({AFTER: after})),
            (_("Last"), None if after is None else link({BEFORE: ""})),
        ]
        return [*found, (_("Show all"), link({ALL_VAR: ""}))] if self.can_show_all else found

    @property
    def _admin(self) -> "ReadOnlyAdmin":
        return cast("ReadOnlyAdmin", self.model_admin)

    def _sortable_column(self) -> int | None:
        names = list(self.list_display)
        return next((names.index(name) for name in self.sortable_by or ()), None)

    def _is_descending(self, ordering: Sequence[str]) -> bool:
        return ordering[0].startswith("-") != self._is_turned(ordering)

    def _is_turned(self, ordering: Sequence[str]) -> bool:
        column = self._sortable_column()
        wanted = f"{column}" if ordering[0].startswith("-") else f"-{column}"
        return column is not None and self.params.get(ORDER_VAR) == wanted


def turned(name: str) -> str:
    """Return the other direction of an ordering's field."""
    return name.removeprefix("-") if name.startswith("-") else f"-{name}"


class ChoiceFilter(admin.SimpleListFilter):
    """One of a fixed list of values of an indexed column."""

    values: Sequence[Choice] = ()
    column: str | None = None
    """The column that has the value; none: the rows are narrowed down in another way."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Choice]:
        """Return the values with their labels."""
        return self.values

    def has_output(self) -> bool:
        """Tell whether there is anything to choose, or was: else Django shows the whole list."""
        return super().has_output() or self.value() is not None

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Narrow the list down; any other value is refused."""
        value = self.value()
        if value is None:
            return queryset
        if value not in {str(known) for known, _label in self.lookup_choices}:
            raise IncorrectLookupParameters
        return self.narrowed(queryset, value)

    def narrowed(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        """Return the rows that have ``value`` in the filter's column.

        Told that they are equal, MariaDB reads all of them up to the page that is asked for; a
        range of one value goes on with the order's columns.
        """
        if connection.vendor != "mysql":
            return queryset.filter(**{f"{self.column}": value})
        return queryset.filter(**{f"{self.column}__gte": value, f"{self.column}__lte": value})
