"""The base of all our admins: rows that are looked at, with tables of what belongs to them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.utils.text import capfirst

from recovery.admin.lists import IndexedChangeList
from recovery.admin.paging import CappedPaginator
from recovery.admin.search import ExactSearchAdmin
from recovery.admin.tables import Table


class ReadOnlyAdmin(ExactSearchAdmin):
    """Rows that nobody adds, changes or deletes here: guarded verbs do that.

    Lists are in the order of an index, newest first; whatever would read a whole table is off.
    """

    ordering: ClassVar[tuple[str, ...]] = ("-id",)
    sortable_by: ClassVar[tuple[str, ...]] = ()
    list_per_page = 100
    named_by: ClassVar[str] = ""
    """The field that people name a row by; empty: nobody does."""
    named_rank: ClassVar[int] = 0
    """Which kind of row a name is looked for first."""
    note: ClassVar[Any] = ""
    """What people should know of all these rows; on the list and on each page."""
    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    change_list_template = "admin/recovery/list.html"
    change_form_template = "admin/recovery/object.html"

    class Media:
        """One style sheet for all our pages."""

        css = {"all": ("recovery/admin.css",)}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[IndexedChangeList]:
        """Return the list that keeps to its indexes."""
        return IndexedChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Allow the filters of the list alone: any other column could be without an index."""
        return lookup in {getattr(it, "parameter_name", None) for it in self.list_filter}

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the list; refuse a POST by whoever has no action here."""
        if request.method == "POST" and not self.get_actions(request):
            raise PermissionDenied
        context = {
            "title": capfirst(self.opts.verbose_name_plural),
            "note": self.note,
            "elsewhere": list(self.elsewhere(request)),
        }
        return super().changelist_view(request, context | (extra_context or {}))

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the order of the index that serves the filters asked for: their columns first."""
        filters: Iterable[Any] = self.list_filter
        columns = [it.column for it in filters if it.column and it.parameter_name in request.GET]
        sign = "-" if self.ordering[0].startswith("-") else ""
        return (*(sign + column for column in columns), *self.ordering)

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        """Return the row with its ``reader``: not everybody is shown everything."""
        row: Any = super().get_object(request, object_id, from_field)
        if row is not None:
            row.reader = request.user
        return row

    def elsewhere(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Return address and text of links above the list: where else to look."""
        return ()

    def for_list(self, queryset: Any) -> Any:
        """Return what the list reads of its rows; by default everything."""
        return queryset

    def tables(self, row: Any) -> Iterable[Table]:
        """Return the tables on the page of ``row``."""
        return ()

    def buttons(self, request: HttpRequest, row: Any) -> Iterable[Mapping[str, Any]]:
        """Return what the user may do to ``row``."""
        return ()

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add tables and buttons to the page of a row."""
        row = context["original"]
        context |= {
            "title": capfirst(self.opts.verbose_name),
            "note": self.note,
            "tables": list(self.tables(row)),
            "buttons": list(self.buttons(request, row)),
        }
        return super().render_change_form(request, context, *args, **kwargs)


def column(description: Any, **options: Any) -> Callable[[Any], Any]:
    """Return Django's ``admin.display`` with the description first."""
    decorate: Callable[[Any], Any] = admin.display(description=description, **options)
    return decorate
