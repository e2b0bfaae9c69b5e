"""Records are sealed after their commit, in a chain, once each."""

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import uuid4

import pytest
from django.db import transaction
from hypothesis import given
from hypothesis import strategies as st

from recovery import runner
from recovery.clock import db_now
from recovery.leases import LeaseLostError
from recovery.models import AuditArchive, AuditRecord, AuditSeal, AuditSealSpan
from recovery.trail import archiving, keys, lines, seals
from recovery.trail.seals import seal_some, unsealed_since
from tests.logs import kept
from tests.recovery.trail.records import (
    ARCHIVE,
    SEAL,
    done,
    everything,
    found,
    lines_in_table,
    newest,
    ran,
    run_sql,
    sealed,
    written,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_what_is_committed_is_sealed_once_and_in_a_chain():
    first = sealed(3)
    second = sealed(2)
    assert ran(SEAL).result == {}
    one, two = AuditSeal.objects.with_spans().order_by("number")
    assert (one.number, one.previous, one.ranges()) == (1, "", [(first[0], first[-1])])
    assert (two.number, two.previous, two.ranges()) == (2, one.hash, [(second[0], second[-1])])
    assert (one.count, two.count) == (3, 2)
    assert found() == []


def test_seal_says_what_the_documentation_says():
    """docs/audit.md: with nothing but SHA-256 and the records' lines."""
    (pk,) = sealed()
    seal, line = newest(), lines_in_table()[pk]
    digest = sha256(f"{sha256(line).hexdigest()}\n".encode()).hexdigest()
    at = seal.at.astimezone(UTC).isoformat("T", "microseconds")
    text = f"seal 1\nprevious -\nday {seal.day}\nat {at}\nrecords {pk}\ndigest {digest}\n"
    assert (seal.digest, seal.hash) == (digest, sha256(text.encode()).hexdigest())


def test_run_without_new_records_leaves_no_seal():
    assert ran(SEAL).result == {}
    assert not AuditSeal.objects.exists()


def test_days_do_not_share_a_seal():
    young, old = written(days_ago=0), written(days_ago=3)
    ran(SEAL)
    one, two = AuditSeal.objects.with_spans().order_by("number")
    assert (one.ranges(), two.ranges()) == ([(old[0], old[0])], [(young[0], young[0])])
    assert (two.day - one.day).days == 3
    assert found() == []


def test_backlog_is_sealed_in_seals_of_bounded_size(monkeypatch):
    monkeypatch.setattr(seals, "MOST_RECORDS", 4)
    written(10)
    outcome = runner.run_job(SEAL)
    assert outcome.result == {"records_sealed": 10, "seals": 3}
    assert [it.count for it in AuditSeal.objects.order_by("number")] == [4, 4, 2]


def test_seals_and_files_of_large_records_are_of_bounded_size(monkeypatch):
    monkeypatch.setattr(seals, "MOST_BYTES", 10_000)
    monkeypatch.setattr(archiving, "PART_BYTES", 20_000)
    ids = written(10, days_ago=200, reason="x" * 4_000)
    before = lines_in_table()
    assert runner.run_job(SEAL).result == {"records_sealed": 10, "seals": 4}
    made = AuditSeal.objects.order_by("number")
    assert [it.count for it in made] == [3, 3, 3, 1]
    assert [it.size for it in made] == [
        sum(len(before[pk]) for first, last in it.ranges() for pk in range(first, last + 1))
        for it in made
    ]
    assert ran(ARCHIVE).status == "ok"
    assert list(AuditArchive.objects.order_by("part").values_list("count", flat=True)) == [6, 4]
    assert everything(ids) == [before[pk] for pk in ids]
    assert found() == []


def test_large_late_records_are_sealed_in_turn(monkeypatch):
    (first,) = sealed()
    with_id(first + 7)
    ran(SEAL)
    monkeypatch.setattr(seals, "MOST_BYTES", 10_000)
    for pk in (first + 1, first + 2, first + 4, first + 5, first + 9):
        with_id(pk, reason="x" * 4_000)
    assert runner.run_job(SEAL).result == {"records_sealed": 5, "seals": 2}
    late, rest = AuditSeal.objects.with_spans().order_by("-number")[:2][::-1]
    assert late.ranges() == [(first + 1, first + 2), (first + 4, first + 4)]
    assert rest.ranges() == [(first + 5, first + 5), (first + 9, first + 9)]
    with_id(first + 3)
    assert ran(SEAL).result == {"records_sealed": 1, "seals": 1}
    assert (found(), unsealed_since()) == ([], None)


def with_id(pk, **more):
    """Store a record of this id, as one that was begun long ago and commits now."""
    AuditRecord(pk=pk, actor="a", action="late", target_type="t", target_id="x", **more).save()


def test_record_whose_transaction_commits_late_joins_the_next_seal():
    (first,) = sealed()
    with_id(first + 2)
    with_id(first + 7)
    ran(SEAL)
    with_id(first + 5)
    with_id(first + 1)
    assert found() == []
    assert unsealed_since() is not None
    ran(SEAL)
    assert newest().ranges() == [(first + 1, first + 1), (first + 5, first + 5)]
    assert unsealed_since() is None
    with_id(first + 6)
    assert ran(SEAL).result == {"records_sealed": 1, "seals": 1}
    assert found() == []


@pytest.mark.mariadb
def test_record_of_a_transaction_that_is_still_open_is_sealed_after_its_commit(second_connection):
    written()
    second_connection.set_autocommit(False)
    with second_connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO recovery_auditrecord (actor, action, target_type, target_id, reason,"
            " `before`, `after`, evidence) VALUES ('a', 'slow', 't', 'x', '', '{}', '{}', '{}')"
        )
        slow = cursor.lastrowid
    (last,) = sealed()
    assert last > slow
    second_connection.commit()
    second_connection.set_autocommit(True)
    assert found() == []
    ran(SEAL)
    assert newest().ranges() == [(slow, slow)]
    assert found() == []


def test_gap_that_is_too_old_is_not_looked_at_and_what_appears_in_it_is_an_alarm(monkeypatch):
    (first,) = sealed()
    with_id(first + 3)
    ran(SEAL)
    monkeypatch.setattr(seals, "LATE_S", -1)
    sealed()
    with_id(first + 1)
    assert ran(SEAL).result == {}
    assert found() == [("inserted", first + 1)]


def test_record_that_stays_unsealed_for_an_hour_is_an_alarm():
    written(days_ago=0.9 / 24)
    assert found() == []
    (old,) = written(days_ago=1.1 / 24)
    assert found() == [("unsealed", old)]
    assert db_now() - unsealed_since() > timedelta(hours=0.8)


def test_lost_lease_seals_nothing():
    written()

    def lost():
        raise LeaseLostError

    with pytest.raises(LeaseLostError):
        seal_some(lost)
    assert not AuditSeal.objects.exists()
    assert not AuditSealSpan.objects.exists()
    ran(SEAL)
    assert newest().number == 1


@pytest.mark.mariadb
def test_number_of_a_seal_is_given_once(second_connection):
    """Who seals without the job's lock fails on the number, and nothing of it stays."""
    written(2)

    def meanwhile():
        with second_connection.cursor() as cursor:
            cursor.execute("SET innodb_lock_wait_timeout = 1")
            with pytest.raises(Exception, match=r"Lock wait|Duplicate"):
                cursor.execute(
                    "INSERT INTO recovery_auditseal (number, day, at, count, size, first_at,"
                    " last_at, digest, previous, hash, mac, `key`, marks, gaps) VALUES (1, NOW(),"
                    " NOW(), 1, 1, NOW(), NOW(), '', '', '', '', '', '', '[]')"
                )

    seal_some(meanwhile)
    assert newest().count == 2


def test_newest_seal_is_logged_where_the_database_does_not_reach():
    with kept() as records:
        sealed(2)
    (told,) = [it for it in records if it["event"] == "audit_sealed"]
    assert (told["seal"], told["hash"]) == (1, newest().hash)


def test_seals_of_a_key_that_was_replaced_are_verified_by_the_old_one(settings):
    old, new = "o" * 40, "n" * 40
    settings.AUDIT_SEAL_KEYS = [old]
    sealed()
    settings.AUDIT_SEAL_KEYS = [new, old]
    sealed()
    assert AuditSeal.objects.values("key").distinct().count() == 2
    assert found() == []
    settings.AUDIT_SEAL_KEYS = [new]
    assert [what for what, _ in found()] == ["unknown-key"]


def test_without_keys_of_their_own_they_follow_the_secret_key(settings):
    settings.AUDIT_SEAL_KEYS = []
    sealed()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "x" * 50
    assert found() == []
    settings.SECRET_KEY_FALLBACKS = []
    assert [what for what, _ in found()] == ["unknown-key"]


def test_name_of_a_key_does_not_tell_the_key(settings):
    settings.AUDIT_SEAL_KEYS = ["k" * 40]
    (name,) = keys.own_keys()
    assert next(iter(keys.all_keys())) == name
    assert "k" * 4 not in name


def test_first_keys_of_their_own_leave_older_seals_verified_and_no_way_back(settings):
    settings.AUDIT_SEAL_KEYS = []
    sealed()
    settings.AUDIT_SEAL_KEYS = ["k" * 40]
    sealed()
    assert found() == []
    settings.AUDIT_SEAL_KEYS = []
    sealed()
    settings.AUDIT_SEAL_KEYS = ["k" * 40]
    assert [what for what, _ in found()] == ["seal-changed"]


def test_gaps_are_kept_by_the_newest_seal_alone():
    (first,) = sealed()
    with_id(first + 5)
    ran(SEAL)
    assert newest().gaps
    with_id(first + 6)
    ran(SEAL)
    assert [bool(it.gaps) for it in AuditSeal.objects.order_by("number")] == [False, False, True]


def test_highest_id_is_that_of_the_spans_which_are_signed():
    ids = sealed(2)
    assert AuditSealSpan.reached() == ids[-1]
    AuditSealSpan.objects.create(seal=newest(), first_id=2**40, last_id=2**40)
    assert {it.what for it in done().findings} >= {"seal-changed"}


@pytest.mark.mariadb
def test_ids_that_step_leave_no_gaps():
    run_sql("SET auto_increment_increment = 3")
    try:
        for count in (5, 2):
            written(count)
            seal_some(lambda: None)
    finally:
        run_sql("SET auto_increment_increment = DEFAULT")
    assert [it for it in newest().gaps if it[0] > 1] == []  # below: what earlier tests had
    assert found() == []


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda it: st.lists(it, max_size=3) | st.dictionaries(TEXTS, it, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(TEXTS, VALUES, max_size=4), TEXTS)
def test_line_is_the_same_before_and_after_the_database_and_the_file(value, reason):
    record = AuditRecord(
        at=datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC), actor="a", action="b",
        target_type="c", target_id="d", before=value, reason=reason, run_id=uuid4(),
    )  # fmt: skip
    with transaction.atomic():
        record.save()
        written_line = lines.line_of(getattr(record, it) for it in lines.COLUMNS)
        stored = lines.line_of(
            AuditRecord.objects.filter(pk=record.pk).values_list(*lines.COLUMNS).get()
        )
        transaction.set_rollback(True)
    assert written_line == stored
    assert stored.isascii()
    assert stored.count(b"\n") == 1
    back = lines.record_of(stored)
    assert lines.line_of(getattr(back, it) for it in lines.COLUMNS) == stored
    assert json.loads(stored)["before"] == value
