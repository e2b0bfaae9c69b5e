"""Lists that only do what an index serves: their order, their filters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ORDER_VAR, ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest

if TYPE_CHECKING:
    from recovery.admin.rows import ReadOnlyAdmin

Choice = tuple[str, Any]


class IndexedChangeList(ChangeList):
    """A list in the order of an index, to be turned round by clicking its one sortable column.

    Django sorts by any column that an address names, and ties by descending id, which makes
    the database sort the whole table.
    """

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str | None] | None = None
    ) -> QuerySet[Any]:
        """Return the rows of the list, without what lists do not show."""
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

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Choice]:
        """Return the values with their labels."""
        return self.values

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Narrow the list down; any other value is refused."""
        value = self.value()
        if value is None:
            return queryset
        if value not in {str(known) for known, _label in self.lookup_choices}:
            raise IncorrectLookupParameters
        return self.narrowed(queryset, value)

    def narrowed(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        """Return the rows that have ``value`` in the column the filter is named after."""
        return queryset.filter(**{str(self.parameter_name): value})
