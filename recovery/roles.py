"""Roles: groups of users, made by migrations, to which each app grants what its rows need."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.contrib.auth.management import create_permissions

VIEWER, OPERATOR, ADMINISTRATOR = "Viewer", "Operator", "Administrator"
ROLES = (VIEWER, OPERATOR, ADMINISTRATOR)
"""From the least to the most: who has one may do all that those before it may."""

Wanted = Mapping[str, Iterable[str]]


def viewing(apps: Any, app_label: str) -> list[str]:
    """Return the permissions to see each kind of row of an app, for a migration to grant."""
    models = apps.get_app_config(app_label).get_models()
    return [f"{app_label}.view_{model._meta.model_name}" for model in models]


def grant(apps: Any, schema_editor: Any, wanted: Wanted) -> None:
    """Grant roles, and those above them, the permissions wanted: ``{role: ["app.codename", …]}``.

    For a migration's RunPython, with its ``apps`` and ``schema_editor``. What is missing of groups
    and permissions is made: Django makes permissions only after the last migration. Idempotent.
    Its migration depends on the one that makes each model, and on those of auth and contenttypes.
    Raises LookupError: the app has no such permission.
    """
    alias = schema_editor.connection.alias
    groups = apps.get_model("auth", "Group").objects.using(alias)
    for role in ROLES:
        group, _made = groups.get_or_create(name=role)
        names = [name for it in _up_to(role) for name in wanted.get(it, ())]
        group.permissions.add(*_permissions(apps, alias, names))


def _up_to(role: str) -> Sequence[str]:
    return ROLES[: ROLES.index(role) + 1]


def _permissions(apps: Any, alias: str, names: Iterable[str]) -> list[Any]:
    by_app: dict[str, set[str]] = {}
    for name in names:
        app_label, _dot, codename = name.partition(".")
        by_app.setdefault(app_label, set()).add(codename)
    return [it for app_label, some in by_app.items() for it in _of(apps, alias, app_label, some)]


def _of(apps: Any, alias: str, app_label: str, codenames: set[str]) -> list[Any]:
    _make(apps, alias, app_label)
    permissions = apps.get_model("auth", "Permission").objects.using(alias)
    found = list(permissions.filter(content_type__app_label=app_label, codename__in=codenames))
    missing = codenames - {it.codename for it in found}
    if missing:
        raise LookupError(f"app {app_label!r} has no permission {', '.join(sorted(missing))}")
    return found


def _make(apps: Any, alias: str, app_label: str) -> None:
    config = apps.get_app_config(app_label)
    if not getattr(config, "models_module", None):
        config.models_module = True  # a migration's apps have none, and would be passed over
    create_permissions(config, verbosity=0, interactive=False, using=alias, apps=apps)
