"""Triggers keep audit records from whoever may write to the database, and let the archiver work."""

import io

import pytest
from django.core.checks import Tags, run_checks
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from recovery.models import AuditArchive, AuditRecord, AuditSeal
from recovery.trail import guards
from tests.logs import kept
from tests.recovery.trail.records import (
    archived,
    found,
    lines_in_archives,
    run_sql,
    sealed,
    written,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]


@pytest.fixture
def guarded():
    """Put the guards up for a test."""
    guards.put_up()
    yield
    guards.take_down()


def refused(sql, *parameters):
    """Return what the database says to a statement."""
    with pytest.raises(DatabaseError) as caught, transaction.atomic():
        run_sql(sql, *parameters)
    return str(caught.value)


@pytest.mark.usefixtures("guarded")
def test_record_is_neither_changed_nor_deleted_by_sql():
    hot, fresh = sealed(days_ago=1), written()
    for pk in (*hot, *fresh):
        assert "never changed" in refused(
            "UPDATE recovery_auditrecord SET actor = 'eve' WHERE id = %s", pk
        )
        assert "archive was verified" in refused(
            "DELETE FROM recovery_auditrecord WHERE id = %s", pk
        )
    assert AuditRecord.objects.count() == 2
    assert found() == []


@pytest.mark.usefixtures("guarded")
def test_archiver_deletes_what_its_manifest_has_and_nothing_else():
    (old,) = archived(days_ago=100)
    (late,) = sealed(days_ago=100)
    assert not AuditRecord.objects.filter(pk=old).exists()
    assert len(lines_in_archives()) == 1
    assert "archive was verified" in refused("DELETE FROM recovery_auditrecord WHERE id = %s", late)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(
    ("status", "goes"), [("placing", False), ("written", True), ("done", False)]
)
def test_ids_of_a_manifest_go_only_while_it_is_verified_and_not_done(status, goes):
    first, middle, last = sealed(3, days_ago=1)
    young = sealed(days_ago=1)
    archived(days_ago=100)
    archive = AuditArchive.objects.get()
    AuditSeal.objects.filter(spans__first_id=first).update(archive=archive)
    AuditArchive.objects.filter(pk=archive.pk).update(status=status)
    if goes:
        run_sql("DELETE FROM recovery_auditrecord WHERE id = %s", middle)
    else:
        refused("DELETE FROM recovery_auditrecord WHERE id = %s", middle)
    assert AuditRecord.objects.filter(pk=middle).exists() is not goes
    refused("DELETE FROM recovery_auditrecord WHERE id IN (%s, %s)", last, young[0])
    assert AuditRecord.objects.filter(pk=last).exists()


def test_they_are_put_up_once_and_taken_down():
    assert len(guards.missing()) == 2
    assert len(guards.put_up()) == 2
    assert (guards.put_up(), guards.missing()) == ([], [])
    assert len(guards.take_down()) == 2
    assert guards.take_down() == []


def test_guard_that_was_weakened_is_made_anew():
    guards.put_up()
    try:
        run_sql("DROP TRIGGER recovery_auditrecord_keeps_update")
        run_sql(
            "CREATE TRIGGER recovery_auditrecord_keeps_update BEFORE UPDATE"
            " ON recovery_auditrecord FOR EACH ROW SET @nothing = 1"
        )
        assert guards.missing() == ["recovery_auditrecord_keeps_update"]
        assert guards.put_up() == ["recovery_auditrecord_keeps_update"]
    finally:
        guards.take_down()


def test_migrate_puts_them_up_where_the_settings_want_them(settings):
    settings.AUDIT_TRIGGERS = False
    call_command("migrate", verbosity=0)
    assert len(guards.missing()) == 2
    settings.AUDIT_TRIGGERS = True
    try:
        assert "recovery.W034" in checked()
        call_command("migrate", verbosity=0)
        assert guards.missing() == []
        assert "recovery.W034" not in checked()
    finally:
        guards.take_down()


def checked():
    return {it.id for it in run_checks(tags=[Tags.database], databases=["default"])}


def test_migrate_goes_on_where_the_right_is_missing(settings, monkeypatch):
    def denied(_using):
        raise DatabaseError(1142, "TRIGGER command denied to user")

    monkeypatch.setattr(guards, "put_up", denied)
    settings.AUDIT_TRIGGERS = True
    with kept() as records:
        guards.after_migrate("default")
    (told,) = [it for it in records if it["event"] == "audit_guards_refused"]
    assert "1142" in told["error"]


def test_they_are_taken_down_by_command_with_a_reason_and_on_the_record():
    out = io.StringIO()
    call_command("audit", "guard", "--up", stdout=out)
    assert "all guards stand" in out.getvalue()
    with pytest.raises(CommandError, match="--reason"):
        call_command("audit", "guard", "--down")
    assert guards.missing() == []
    call_command("audit", "guard", "--down", "--reason", "table copied", stdout=io.StringIO())
    record = AuditRecord.objects.get(action="audit-guards-lowered")
    assert record.reason == "table copied"
    assert len(record.before["guards"]) == 2
    assert len(guards.missing()) == 2


def test_they_are_put_up_by_command_on_the_record_where_they_were_missing():
    for _twice in range(2):
        call_command("audit", "guard", "--up", "--reason", "copied", stdout=io.StringIO())
    record = AuditRecord.objects.get(action="audit-guards-raised")
    assert (record.reason, record.before) == ("copied", {"guards": []})
    assert len(record.after["guards"]) == 2
    assert record.actor.startswith("cli:")
    guards.take_down()


def test_printed_sql_makes_them_by_the_servers_own_client(manage):
    printed = manage("audit", "guard", "--sql", "--json").json()["sql"]
    with connection.cursor() as cursor:
        for sql in printed:
            cursor.execute(sql)
    try:
        assert guards.missing() == []
    finally:
        guards.take_down()
