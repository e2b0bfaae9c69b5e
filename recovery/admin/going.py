"""``/admin/go/<name>``: from what a log line, an alarm or a person names to its page."""

from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _

from recovery.admin.rows import ReadOnlyAdmin
from recovery.admin.search import matching
from recovery.admin.tables import list_of, page_of_key
from recovery.console import page

LONGEST_NAME = 500


@page("go/", "go")
def search(request: HttpRequest) -> HttpResponse:
    """Lead to what ``q`` names."""
    return go(request, request.GET.get("q", ""))


@page("go/<path:name>", "go_to")
def go(request: HttpRequest, name: str) -> HttpResponse:
    """Lead to the page of what is called ``name``, or to the list of what it is said of."""
    name = name.strip()
    found = _place(request, name) if 0 < len(name) <= LONGEST_NAME else None
    if found:
        return HttpResponseRedirect(found)
    site: Any = admin.site
    context = {"title": _("Nothing found"), "name": name[:LONGEST_NAME]}
    response: HttpResponse = site.render(
        request, "admin/recovery/not_found.html", context, status=404 if name else 200
    )
    return response


def _place(request: HttpRequest, name: str) -> str | None:
    """Return the address of the row of this name, else of the first list that knows it."""
    admins = list(_admins(request))
    for it in admins:
        if found := _leads(it, name, matching(it.model, it.named_by, name)):
            return found
    for it in admins:
        if found := _leads(it, name, (pk for pks in it.matches(name) for pk in pks)):
            return found
    return None


def _leads(it: ReadOnlyAdmin, name: str, pks: Iterable[Any]) -> str | None:
    """Return the page of the only row, or the list of several."""
    keys = set(pks)
    if len(keys) == 1:
        return page_of_key(it.model, keys.pop())
    return list_of(it.model, q=name) if keys else None


def _admins(request: HttpRequest) -> Iterator[ReadOnlyAdmin]:
    """Yield the admins of rows that people name and the user may see, likely ones first."""
    registry: dict[type[Model], Any] = admin.site._registry
    ours = [it for it in registry.values() if isinstance(it, ReadOnlyAdmin) and it.named_by]
    for it in sorted(ours, key=lambda it: it.named_rank):
        if it.has_view_permission(request):
            yield it
