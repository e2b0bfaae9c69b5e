"""The operators' console: Django's admin site, with pages beyond lists and rows of one model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from django.contrib.admin.apps import AdminConfig
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from recovery import nows

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite as SkinnedSite
else:
    from unfold.sites import UnfoldAdminSite as SkinnedSite

View = Callable[..., HttpResponse]

PEOPLE = ("auth", "axes")
"""Apps whose rows stand last in the menu."""


class ConsoleConfig(AdminConfig):
    """Django's admin with our site."""

    default_site = "recovery.console.ConsoleSite"


@dataclass(frozen=True)
class Page:
    """A page of the console that no model's admin has."""

    route: str
    """Below ``/admin/``, as in ``path()``."""
    name: str
    view: View
    permission: str
    """What it takes to see it; empty: to be staff."""


@dataclass(frozen=True)
class Shortcut:
    """A place in the upper part of the menu."""

    order: int
    title: Any
    icon: str
    """Of the skin's set of symbols."""
    name: str
    """Of the address, as in ``reverse("admin:<name>")``."""
    permission: str


_pages: dict[str, Page] = {}
_front: list[View] = []
_shortcuts: dict[str, Shortcut] = {}


def page(route: str, name: str, *, permission: str = "") -> Callable[[View], View]:
    """Register the decorated view as the page ``admin:<name>``, for those with the permission."""

    def register(view: View) -> View:
        _pages[name] = Page(route, name, _guarded(view, permission), permission)
        return view

    return register


def front_page(view: View) -> View:
    """Register the decorated view as what ``/admin/`` shows."""
    _front[:] = [view]
    return view


def shortcut(made: Shortcut) -> None:
    """Show a place in the menu, to those with its permission."""
    _shortcuts[made.name] = made


def _guarded(view: View, permission: str) -> View:
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if permission and not request.user.has_perm(permission):
            raise PermissionDenied
        return view(request, *args, **kwargs)

    return guarded


class ConsoleSite(SkinnedSite):
    """The site: overview first, then what is wrong, then the rows of each app."""

    site_header = gettext_lazy("Split recovery")
    site_title = gettext_lazy("Split recovery")
    index_title = gettext_lazy("Overview")

    def index(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Show the front page."""
        return _front[0](request)

    def extra_urls(self) -> list[URLPattern]:
        """Return the addresses of the registered pages."""
        return [path(it.route, self.admin_view(it.view), name=it.name) for it in _pages.values()]

    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        """Return ``view`` for staff alone; ages are those of the moment it is asked for."""
        inner: View = super().admin_view(view, cacheable)

        @wraps(view)
        def timed(*args: Any, **kwargs: Any) -> HttpResponse:
            nows.begin()
            return inner(*args, **kwargs)

        return timed

    def render(
        self, request: HttpRequest, template: str, context: dict[str, Any], *, status: int = 200
    ) -> TemplateResponse:
        """Return a page within the site's frame."""
        request.current_app = self.name
        everywhere = self.each_context(request)
        return TemplateResponse(request, template, everywhere | context, status=status)

    def get_sidebar_list(self, request: HttpRequest) -> list[dict[str, Any]]:
        """Return the menu: our pages, then each app's rows."""
        ours = [_item(request, _("Overview"), "monitoring", reverse("admin:index"))]
        ours += [
            _item(request, it.title, it.icon, reverse(f"admin:{it.name}"))
            for it in sorted(_shortcuts.values(), key=lambda it: it.order)
            if request.user.has_perm(it.permission)
        ]
        apps = sorted(self.get_app_list(request), key=lambda it: it["app_label"] in PEOPLE)
        rows = [
            {"title": it["name"], "collapsible": True, "items": list(_models(request, it))}
            for it in apps
        ]
        return [{"title": "", "items": ours}, *rows]


def _models(request: HttpRequest, app: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for it in app["models"]:
        if it.get("admin_url"):
            yield _item(request, it["name"], "", it["admin_url"])


def _item(request: HttpRequest, title: Any, icon: str, link: str) -> dict[str, Any]:
    at_home = link == reverse("admin:index")
    active = request.path == link if at_home else request.path.startswith(link)
    return {
        "title": title,
        "icon": icon,
        "link": link,
        "active": active,
        "has_permission": True,
    }
