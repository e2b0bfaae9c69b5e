"""Roles as migrations make them, and people who have them."""

import importlib
import pkgutil
from types import SimpleNamespace
from typing import Any

from django.apps import apps
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client

from recovery.roles import ADMINISTRATOR, OPERATOR, VIEWER

APPS = ("recovery", "ledger", "splits")
NOBODY = "staff without a role"


def seen(app_label: str) -> set[str]:
    """Return the permissions to see each kind of row of an app."""
    models = apps.get_app_config(app_label).get_models()
    return {f"{app_label}.view_{model._meta.model_name}" for model in models}


MAY_VIEWER = {name for app_label in APPS for name in seen(app_label)}
MAY_OPERATOR = MAY_VIEWER | {
    "recovery.change_job",
    "ledger.redrive_outboxentry",
    "ledger.discard_outboxentry",
    "ledger.restore_outboxentry",
    "ledger.view_payload",
    "splits.recover_splitorder",
    "splits.retry_splitorder",
    "splits.release_splitorder",
    "splits.cancel_splitorder",
    "splits.reverse_splitorder",
}
MAY_ADMINISTRATOR = MAY_OPERATOR | {
    "recovery.view_stacktrace",
    "ledger.edit_outboxentry",
    "ledger.change_account",
    "axes.view_accessattempt",
    "axes.delete_accessattempt",
    "auth.add_user",
    "auth.change_user",
    "auth.delete_user",
    "auth.view_user",
    "auth.add_group",
    "auth.change_group",
    "auth.delete_group",
    "auth.view_group",
}
MAY: dict[str, set[str]] = {
    NOBODY: set(),
    VIEWER: MAY_VIEWER,
    OPERATOR: MAY_OPERATOR,
    ADMINISTRATOR: MAY_ADMINISTRATOR,
}


def grant_all() -> None:
    """Do what the migrations do, in their order: a test that flushed the tables took the groups."""
    for app_label in APPS:
        package = importlib.import_module(f"{app_label}.migrations")
        for name in sorted(it.name for it in pkgutil.iter_modules(package.__path__)):
            migration = importlib.import_module(f"{package.__name__}.{name}")
            if hasattr(migration, "grant"):
                migration.grant(apps, SimpleNamespace(connection=connection))


def granted() -> dict[str, set[str]]:
    """Return the permissions of each group."""
    return {group.name: _names(group.permissions.all()) for group in Group.objects.all()}


def _names(permissions: Any) -> set[str]:
    rows = permissions.values_list("content_type__app_label", "codename")
    return {f"{app_label}.{codename}" for app_label, codename in rows}


def person(role: str, *, name: str = "", **facts: Any) -> User:
    """Return a member of the staff who has ``role``, made at the first call."""
    user, made = User.objects.get_or_create(
        username=name or role.lower().replace(" ", "-"), defaults={"is_staff": True, **facts}
    )
    if made and role != NOBODY:
        user.groups.set([Group.objects.get(name=role)])
    return user


def logged_in(role: str, **options: Any) -> Client:
    """Return a client of somebody who has ``role``."""
    client = Client(**options)
    client.force_login(person(role))
    return client


def has_permission(name: str) -> bool:
    """Tell whether there is a permission ``app.codename``."""
    app_label, _dot, codename = name.partition(".")
    found = Permission.objects.filter(content_type__app_label=app_label, codename=codename)
    return found.exists()
