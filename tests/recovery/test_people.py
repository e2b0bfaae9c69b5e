"""Users, groups and access attempts changed in the admin: each on the record."""

import pytest
from axes.models import AccessAttempt
from django.contrib.auth.models import Group, User

from recovery import audit
from recovery.models import AuditRecord
from recovery.roles import ADMINISTRATOR, OPERATOR
from tests.roles import grant_all, logged_in, person

pytestmark = pytest.mark.django_db
PASSWORD = "quite a long passphrase"


@pytest.fixture(autouse=True)
def _roles():
    grant_all()


@pytest.fixture
def boss():
    return logged_in(ADMINISTRATOR)


def records():
    columns = ("actor", "action", "target_id")
    return list(AuditRecord.objects.order_by("id").values_list(*columns))


def changed(user, **more):
    facts = {"username": user.username, "is_staff": "on", "is_active": "on"}
    return facts | {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"} | more


def test_role_that_is_given_is_on_the_record(boss):
    ann = person(OPERATOR)
    role = Group.objects.get(name=ADMINISTRATOR)
    response = boss.post(f"/admin/auth/user/{ann.pk}/change/", changed(ann, groups=[role.pk]))
    assert response.status_code == 302, response.context["errors"]
    assert records() == [("administrator", "user-changed", str(ann.pk))]
    record = AuditRecord.objects.get()
    assert record.after["groups"] == [ADMINISTRATOR]
    assert record.evidence["name"] == "operator"
    assert (
        "operator" in boss.get(f"/admin/recovery/auditrecord/{record.pk}/change/").content.decode()
    )


def test_user_that_is_added_and_password_that_is_set_are_on_the_record(boss):
    secret = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    boss.post("/admin/auth/user/add/", {"username": "bob", **secret})
    bob = User.objects.get(username="bob")
    boss.post(f"/admin/auth/user/{bob.pk}/password/", secret)
    assert records() == [
        ("administrator", "user-added", str(bob.pk)),
        ("administrator", "user-changed", str(bob.pk)),
    ]
    assert PASSWORD not in str(list(AuditRecord.objects.values()))


def test_role_that_is_changed_or_deleted_is_on_the_record(boss):
    role = Group.objects.create(name="Night shift")
    boss.post(f"/admin/auth/group/{role.pk}/change/", {"name": "Day shift"})
    boss.post("/admin/auth/group/", {
        "action": "delete_selected", "_selected_action": [role.pk], "post": "yes",
    })  # fmt: skip
    assert not Group.objects.filter(pk=role.pk).exists()
    assert [it[1] for it in records()] == ["group-changed", "group-deleted"]


def test_who_is_let_in_again_is_on_the_record(boss):
    attempt = AccessAttempt.objects.create(
        username="x", ip_address="10.0.0.1", failures_since_start=5
    )
    boss.post(f"/admin/axes/accessattempt/{attempt.pk}/delete/", {"post": "yes"})
    assert not AccessAttempt.objects.exists()
    assert records() == [("administrator", "accessattempt-deleted", str(attempt.pk))]


@pytest.mark.django_db(transaction=True)
def test_change_that_cannot_be_recorded_is_not_made(boss, monkeypatch):
    role = Group.objects.create(name="Night shift")

    def refuse(**_facts):
        raise RuntimeError("the record cannot be written")

    monkeypatch.setattr(audit, "record", refuse)
    boss.raise_request_exception = False
    for url, data in (
        (f"/admin/auth/group/{role.pk}/change/", {"name": "Day shift"}),
        (f"/admin/auth/group/{role.pk}/delete/", {"post": "yes"}),
        ("/admin/auth/group/", {"action": "delete_selected", "_selected_action": [role.pk],
                                "post": "yes"}),
    ):  # fmt: skip
        assert boss.post(url, data).status_code == 500
    assert Group.objects.get(pk=role.pk).name == "Night shift"
