"""Records about an entry name it, and errors the code and the attempt."""

import logging

import pytest
from django.db import IntegrityError, OperationalError

from ledger import jobs, judging, poison, posting, rows
from ledger.outbox import JOB
from recovery.runner import run_job
from tests.ledger.entries import drain, fresh, into, junk, policy, put, store
from tests.ledger.entries import lines as lines_of
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
    assert "OAK" not in str(lines), "why it was refused tells stock and quantities"
    assert "would take below zero" in fresh(entry).last_error


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


def test_posted_entries_are_named_in_few_records(settings, monkeypatch):
    settings.JOB_TIME_BUDGET_SEC = 600
    monkeypatch.setattr(jobs, "LONGEST_BATCH_S", 600.0)  # slow batches would be many
    store((f"split-order:SO-{n}:finalized", f"lot:{n}", into("OAK", "1")) for n in range(1_200))
    with kept() as lines:
        assert run_job(JOB).result == {"posted": 1_200}
    told = [it for it in lines if it["event"] == "entries_posted"]
    assert len(lines) <= 6
    named_there = [key for it in told for key in it["event_keys"].split()]
    assert sorted(named_there) == sorted(f"split-order:SO-{n}:finalized" for n in range(1_200))
    assert {it["job"] for it in told} == {JOB}


def test_long_keys_are_named_whole():
    keys = [f"{n:03d}{'k' * 180}" for n in range(300)]
    store((key, f"lot:{key}", into("OAK", "1")) for key in keys)
    with kept() as lines:
        run_job(JOB)
    told = " ".join(it["event_keys"] for it in lines if it["event"] == "entries_posted")
    assert set(told.split()) == set(keys)


def test_common_cause_of_many_refusals_is_told_once_a_batch():
    for n in range(70):
        junk(f"bad{n}", {"schema_version": 0})
    with kept() as lines:
        drain(max_attempts=1)
    assert len(lines) == posting.TOLD_ALONE + 1
    rest = named(lines, "entries_refused")
    assert rest["codes"] == {"payload_invalid": 50}
    alone = [it["event_key"] for it in lines if it["event"] == "entry_refused"]
    assert {*alone, *rest["event_keys"].split()} == {f"bad{n}" for n in range(70)}


def test_payload_of_no_entry_is_logged(settings):
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 1
    settings.RECOVERY_FAULTPOINTS = "outbox.entry:broken=raise"
    for key in ("fine", "broken"):
        put(key, into("OAK", "4711.0815"))
    junk("odd", {"schema_version": 1, "postings": [{"quantity": "4711.0815"}], "x": "hush"})
    put("unbalanced", lines_of(("stock:OAK", "4711.0815")))
    put("below", into("ELM", "-4711.0815"))
    with kept(logging.DEBUG) as lines:
        run_job(JOB)
    assert {it["event"] for it in lines} >= {"entries_posted", "entry_failed", "entry_refused"}
    assert "4711" not in str(lines)
    assert "hush" not in str(lines)


def test_bug_that_many_entries_meet_is_told_by_a_few_stacks(settings):
    settings.RECOVERY_FAULTPOINTS = "outbox.entry:bad=raise"
    for n in range(12):
        put(f"bad{n}", into("OAK", "1"))
    with kept() as lines:
        drain()
    stacks = [it for it in lines if it["event"] == "entry_failed"]
    assert len(stacks) == judging.STACKS_TOLD
    assert len([it for it in lines if it["event"] == "entry_refused"]) == 12
