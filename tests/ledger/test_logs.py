"""Records about an entry name it, and errors the code and the attempt."""

import pytest
from django.db import IntegrityError, OperationalError

from ledger import poison, posting, rows
from tests.ledger.entries import drain, into, junk, policy, put
from tests.logs import kept, named

pytestmark = pytest.mark.django_db(transaction=True)


def test_refused_entry_is_logged_with_key_code_and_attempt():
    entry = put("k", into("OAK", "-1"))
    with kept() as lines:
        drain()
    refused = named(lines, "entry_refused")
    assert (refused["entry"], refused["event_key"]) == (entry.pk, "k")
    assert (refused["code"], refused["attempt"]) == ("insufficient_balance", 1)
    assert (refused["level"], refused["dead"]) == ("info", False)
    assert "would take below zero" in refused["detail"]


def test_last_refusal_of_an_entry_says_that_it_is_dead():
    junk("k", {"schema_version": 0})
    with kept() as lines:
        drain(max_attempts=1)
    refused = named(lines, "entry_refused")
    assert (refused["code"], refused["attempt"]) == ("payload_invalid", 1)
    assert refused["dead"] is True


def test_entry_that_breaks_the_code_is_logged_with_its_stack(settings):
    settings.RECOVERY_FAULTPOINTS = "outbox.entry:k=raise"
    entry = put("k", into("OAK", "1"))
    with kept() as lines:
        drain()
    failed = named(lines, "entry_failed")
    assert (failed["level"], failed["code"], failed["attempt"]) == ("error", "unexpected", 1)
    assert (failed["entry"], failed["event_key"]) == (entry.pk, "k")
    assert "InjectedFaultError" in failed["exception"]


def test_attempt_that_was_counted_before_the_work_is_not_counted_twice(settings):
    settings.RECOVERY_FAULTPOINTS = "outbox.entry:k=raise"
    entry = put("k", into("OAK", "1"))
    with kept() as lines:
        poison.post_with_care(policy(), entry.pk)
    assert named(lines, "entry_failed")["attempt"] == 1
    assert named(lines, "entry_refused")["attempt"] == 1


def test_entry_that_cannot_even_be_charged_is_logged_with_its_stack(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise IntegrityError(4025, "CONSTRAINT failed")

    monkeypatch.setattr(rows, "insert_transactions", refuse)
    monkeypatch.setattr(rows, "store_charges", refuse)
    entry = put("k", into("OAK", "1"))
    with kept() as lines:
        posting.post_due(policy(), limit=10)
    failed = named(lines, "entry_not_charged")
    assert (failed["entry"], failed["event_key"], failed["attempt"]) == (entry.pk, "k", 1)
    assert (failed["code"], failed["errno"]) == ("unexpected", 4025)
    assert "CONSTRAINT failed" in failed["exception"]


def test_whatever_is_logged_while_an_entry_is_worked_alone_names_it(monkeypatch):
    def fail(*_args, **_kwargs):
        raise OperationalError(1213, "Deadlock found")

    entry = put("k", into("OAK", "1"))
    monkeypatch.setattr(rows, "posted_before", fail)
    with kept() as lines, pytest.raises(OperationalError):
        poison.post_with_care(policy(), entry.pk)
    tries = [it for it in lines if it["event"] == "database_retry"]
    assert tries
    assert {it["entry"] for it in tries} == {entry.pk}
