"""Audit records: written with the change, never changed, whatever they quote."""

import getpass
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection, transaction

from recovery import audit
from recovery.models import AppendOnlyError, AuditRecord, Job

WHAT: dict[str, Any] = {
    "actor": "cli:tester",
    "action": "job-paused",
    "target_type": "job",
    "target_id": "x",
}


def write(**more: Any) -> AuditRecord:
    with transaction.atomic():
        record = audit.record(**WHAT | more)
    record.refresh_from_db()
    return record


@pytest.mark.django_db(transaction=True)
def test_record_outside_a_transaction_is_refused():
    with pytest.raises(audit.AuditOutsideTransactionError, match="in the transaction"):
        audit.record(**WHAT)
    assert not AuditRecord.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_change_that_is_rolled_back_takes_its_record_along():
    def change() -> None:
        with transaction.atomic():
            Job.objects.create(name="x")
            audit.record(**WHAT)
            raise LookupError

    with pytest.raises(LookupError):
        change()
    assert not AuditRecord.objects.exists()
    assert not Job.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_change_whose_record_cannot_be_written_does_not_happen():
    def change() -> None:
        with transaction.atomic():
            Job.objects.create(name="x")
            audit.record(**WHAT, before={"at": object()})

    with pytest.raises(TypeError):
        change()
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_everything_is_kept():
    record = write(
        reason="because", before={"a": 1}, after={"a": None}, evidence={"ü": ["木", "😀"]}
    )
    assert (record.actor, record.action, record.target_id) == ("cli:tester", "job-paused", "x")
    assert (record.reason, record.before, record.after) == ("because", {"a": 1}, {"a": None})
    assert record.evidence == {"ü": ["木", "😀"]}


@pytest.mark.django_db
@pytest.mark.parametrize("text", ["\udcff", "a\0b", "😀𠮷", "x" * 100_000, ""])
def test_any_reason_can_be_stored(text):
    record = write(reason=text, actor=f"cli:{text}")
    assert len(record.reason) <= 4_000
    assert len(record.actor) <= 200
    assert "\0" not in record.reason


@pytest.mark.django_db
@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.save(),
        lambda record: record.save(force_update=True),
        lambda record: record.delete(),
        lambda record: AuditRecord.objects.update(reason="other"),
        lambda record: AuditRecord.objects.filter(pk=record.pk).delete(),
        lambda record: AuditRecord.objects.all().delete(),
        lambda record: AuditRecord.objects.bulk_update([record], ["reason"]),
        lambda record: AuditRecord.objects.update_or_create({"reason": "other"}, pk=record.pk),
    ],
)
def test_records_are_append_only(change):
    record = write(reason="first")
    with pytest.raises(AppendOnlyError, match="append-only"), transaction.atomic():
        change(record)
    assert [row.reason for row in AuditRecord.objects.all()] == ["first"]


@pytest.mark.django_db
def test_record_with_the_key_of_another_does_not_replace_it():
    record = write(reason="first")
    copy = AuditRecord(pk=record.pk, **WHAT)
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"), transaction.atomic():
        copy.save()
    assert AuditRecord.objects.get().reason == "first"


@pytest.mark.django_db
def test_time_of_a_record_is_the_databases():
    with connection.cursor() as cursor:
        first, second = write().at, write().at
        cursor.execute("SELECT COUNT(*) FROM recovery_auditrecord WHERE at IS NULL")
        assert cursor.fetchone() == (0,)
    assert first <= second


@pytest.mark.django_db
def test_target_is_a_key():
    with pytest.raises(ValidationError):
        AuditRecord(**WHAT | {"target_id": " x"}).full_clean()


def test_actor_of_a_command_is_the_users_name_or_number(monkeypatch):
    assert audit.cli_actor() == f"cli:{getpass.getuser()}"

    def nameless() -> str:
        raise KeyError

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert audit.cli_actor().removeprefix("cli:").isdigit()
