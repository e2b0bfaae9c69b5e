"""Every address of the admin, found in the resolver, with a row behind each; and what is stored."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db import connection
from django.urls import URLPattern, URLResolver

from recovery import console

VERBS = {
    "changelist": "view",
    "change": "view",
    "history": "view",
    "add": "add",
    "delete": "delete",
}
STAFF = ""
"""Open to everybody who is staff."""
OPEN = {
    "index": STAFF,
    "app_list": STAFF,  # it lists what the reader may see, or is not found
    "search": STAFF,
    "jsi18n": STAFF,
    "autocomplete": STAFF,
    "view_on_site": STAFF,
    "password_change": STAFF,
    "password_change_done": STAFF,
    "auth_user_password_change": "auth.change_user",
}
PUBLIC = ("login", "logout")
NOT_STORED = ("django_session", "axes_")
"""Tables that a log-in or a visit writes."""


@dataclass(frozen=True)
class Address:
    """An address, and what it takes to be let in."""

    path: str
    name: str
    permission: str
    must_show: bool = False
    """Whether whoever has the permission gets a page there, by GET."""

    def __str__(self) -> str:
        """Return what tests call it."""
        return f"{self.name} ({self.path})"


Arguments = dict[str, Callable[[], dict[str, Any]]]


def addresses(arguments: Arguments) -> list[Address]:
    """Return every address under ``/admin/`` but log-in and log-out.

    ``arguments`` makes those of an address that has some and belongs to no model, by its name.
    """
    return [it for it in _walk(admin.site.urls[0], "/admin/", arguments) if it.name not in PUBLIC]


def _walk(patterns: Iterable[Any], prefix: str, arguments: Arguments) -> Iterator[Address]:
    for it in patterns:
        if isinstance(it, URLResolver):
            model = _model_at(str(it.pattern))
            yield from _of_model(it, prefix, model, arguments)
        else:
            yield _custom(it, prefix, arguments)


def _model_at(route: str) -> Any:
    for model in admin.site._registry:
        if route == f"{model._meta.app_label}/{model._meta.model_name}/":
            return model
    return pytest.fail(f"/admin/{route}: nobody knows which model's rows are there")


def _of_model(
    resolver: URLResolver, prefix: str, model: Any, arguments: Arguments
) -> Iterator[Address]:
    opts = model._meta
    row = model._default_manager.order_by("pk").first()
    if row is None:
        pytest.fail(f"tests/splits/test_admin_walk.py makes no row of {opts.label}")
    for it in resolver.url_patterns:
        assert isinstance(it, URLPattern)
        verb = (it.name or "").removeprefix(f"{opts.app_label}_{opts.model_name}_")
        path = f"{prefix}{resolver.pattern}{it.pattern}"
        path = path.replace("<path:object_id>", str(quote(row.pk)))
        if it.name is None:  # it redirects to /change/
            yield Address(path, f"{opts.label_lower} by its key", STAFF)
        elif verb in VERBS:
            permission = f"{opts.app_label}.{VERBS[verb]}_{opts.model_name}"
            yield Address(path, it.name, permission, must_show=VERBS[verb] == "view")
        else:
            yield _custom(it, f"{prefix}{resolver.pattern}", arguments)


def _custom(pattern: URLPattern, prefix: str, arguments: Arguments) -> Address:
    name = pattern.name or "anything else"
    page = console._pages.get(name)
    if page is None and name not in (*OPEN, *PUBLIC) and pattern.name:
        pytest.fail(f"admin:{name}: tests/everyurl.py does not know what it takes to see it")
    path = prefix + str(pattern.pattern)
    if "<" in path:
        path = _filled(path, name, arguments)
    permission = page.permission if page else OPEN.get(name, STAFF)
    return Address(path, name, permission)


def _filled(path: str, name: str, arguments: Arguments) -> str:
    if name not in arguments:
        pytest.fail(f"admin:{name} has arguments: ARGUMENTS of the walk must say which ({path})")
    if path.startswith("/admin/^") or "(?P<" in path:
        return f"/admin/{arguments[name]()['path']}"
    for key, value in arguments[name]().items():
        for converter in ("", "path:", "int:", "str:", "slug:", "uuid:"):
            path = path.replace(f"<{converter}{key}>", str(quote(value)))
    assert "<" not in path, path
    return path


def stored() -> dict[str, str]:
    """Return a hash of the rows of each table but those that a visit itself writes."""
    with connection.cursor() as cursor:
        names = connection.introspection.table_names(cursor)
        return {it: _hash(cursor, it) for it in names if not it.startswith(NOT_STORED)}


def _hash(cursor: Any, table: str) -> str:
    cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
    columns = [it[0] for it in cursor.description]
    kept = [at for at, name in enumerate(columns) if name != "last_login"]
    rows = sorted(repr([row[at] for at in kept]) for row in cursor.fetchall())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def changed(before: dict[str, str]) -> list[str]:
    """Return the tables whose rows are not those of before."""
    return [name for name, rows in stored().items() if rows != before.get(name)]
