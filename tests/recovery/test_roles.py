"""Three roles, each with what it may and nothing more."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client
from django.urls import reverse

from recovery import roles
from recovery.roles import ADMINISTRATOR, OPERATOR, VIEWER
from tests.roles import MAY, NOBODY, grant_all, granted, logged_in, person

pytestmark = pytest.mark.django_db

BY_GROUP = """
SELECT g.name, c.app_label || '.' || p.codename FROM auth_group g
  JOIN auth_group_permissions gp ON gp.group_id = g.id
  JOIN auth_permission p ON p.id = gp.permission_id
  JOIN django_content_type c ON c.id = p.content_type_id
"""
EXPECTED = {role: MAY[role] for role in (VIEWER, OPERATOR, ADMINISTRATOR)}


def test_fresh_database_has_three_groups_with_exactly_what_they_may(tmp_path):
    path = tmp_path / "fresh.sqlite3"
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "manage.py", "migrate"],
        cwd=settings.BASE_DIR,
        env={**kept, "DATABASE_URL": f"sqlite:///{path}", "VAR_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, set[str]] = {}
    with closing(sqlite3.connect(path)) as link:
        for group, permission in link.execute(BY_GROUP):
            found.setdefault(group, set()).add(permission)
    assert found == EXPECTED


def test_granting_again_changes_nothing():
    grant_all()
    before = granted()
    grant_all()
    assert granted() == before == EXPECTED


def test_grant_reaches_those_above_and_takes_nothing_away():
    grant_all()
    editor = SimpleNamespace(connection=connection)
    roles.grant(apps, editor, {OPERATOR: ["splits.delete_lot"]})
    now = granted()
    assert now[VIEWER] == MAY[VIEWER]
    assert now[OPERATOR] == MAY[OPERATOR] | {"splits.delete_lot"}
    assert now[ADMINISTRATOR] == MAY[ADMINISTRATOR] | {"splits.delete_lot"}


def test_permission_that_is_not_there_is_named():
    editor = SimpleNamespace(connection=connection)
    with pytest.raises(LookupError, match="'ledger' has no permission melt_outboxentry"):
        roles.grant(apps, editor, {VIEWER: ["ledger.melt_outboxentry"]})


@pytest.fixture
def _roles():
    grant_all()


def change(user: User) -> str:
    return reverse("admin:auth_user_change", args=[user.pk])


@pytest.mark.usefixtures("_roles")
def test_administrator_gives_roles_but_makes_nobody_a_superuser():
    client, ann = logged_in(ADMINISTRATOR), person(NOBODY, name="ann")
    viewer = Group.objects.get(name=VIEWER)
    form = {"username": "ann", "is_active": "on", "is_staff": "on", "groups": [viewer.pk]}
    date = {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    added = {"is_superuser": "on", "user_permissions": ["1"]}
    assert client.post(change(ann), form | date | added).status_code == 302
    ann.refresh_from_db()
    assert not ann.is_superuser
    assert not ann.user_permissions.exists()
    assert list(ann.groups.all()) == [viewer]


@pytest.mark.usefixtures("_roles")
def test_administrator_does_not_touch_superusers(admin_user):
    client, before = logged_in(ADMINISTRATOR), admin_user.password
    password = reverse("admin:auth_user_password_change", args=[admin_user.pk])
    new = {"password1": "of-my-own-choice-1", "password2": "of-my-own-choice-1"}
    assert client.post(password, new).status_code == 403
    assert client.post(change(admin_user), {"username": "x"}).status_code == 403
    delete = reverse("admin:auth_user_delete", args=[admin_user.pk])
    assert client.post(delete, {"post": "yes"}).status_code == 403
    chosen = {"action": "delete_selected", "_selected_action": [admin_user.pk], "post": "yes"}
    client.post(reverse("admin:auth_user_changelist"), chosen)
    admin_user.refresh_from_db()
    assert (admin_user.username, admin_user.password) == ("admin", before)


@pytest.mark.usefixtures("_roles")
def test_superuser_may_make_superusers(admin_client):
    page = admin_client.get(change(person(NOBODY, name="ann"))).content.decode()
    assert 'name="is_superuser"' in page


@pytest.mark.usefixtures("_roles")
def test_role_without_being_staff_opens_nothing():
    client, user = Client(), person(ADMINISTRATOR, name="outsider", is_staff=False)
    client.force_login(user)
    assert client.get(reverse("admin:index")).status_code == 302
