"""Posted entries go after their days; what the ledger promised of them holds on."""

from datetime import timedelta

import pytest
from django.db import connection

from ledger.models import OutboxEntry, Posting, Transaction
from ledger.outbox import KeyConflictError
from recovery import runner
from recovery.clock import db_now
from recovery.models import AuditRecord
from tests.ledger.entries import balance, drain, fresh, into, lines, put, state, store
from tests.ledger.test_query_plans import analyze, index_of, plans_of, rows_read

pytestmark = pytest.mark.django_db(transaction=True)
JOB = "auditArchive"


@pytest.fixture(autouse=True)
def _days(settings):
    settings.REDIS_URL = ""
    settings.OUTBOX_RETENTION_DAYS = 30


def age(days, *keys):
    """Let entries be made and posted so many days ago."""
    at = db_now() - timedelta(days=days)
    entries = OutboxEntry.objects.filter(event_key__in=keys)
    entries.update(created_at=at)
    entries.exclude(posted_at=None).update(posted_at=at)


def posted(key, days):
    entry = put(key, into("OAK", "1"))
    drain()
    age(days, key)
    return entry


def keys():
    return set(OutboxEntry.objects.values_list("event_key", flat=True))


def retain():
    outcome = runner.run_job(JOB)
    assert outcome.status == "ok", outcome
    return outcome.result.get("outbox_entries_deleted", 0)


def test_posted_entries_past_their_days_go_and_their_transactions_stay():
    posted("old", 30.01)
    posted("young", 29.99)
    assert retain() == 1
    assert keys() == {"young"}
    assert set(Transaction.objects.values_list("event_key", flat=True)) == {"old", "young"}
    assert Posting.objects.count() == 4


def test_entry_that_was_posted_late_is_kept_for_its_days_since_then():
    entry = posted("late", 0)
    OutboxEntry.objects.filter(pk=entry.pk).update(created_at=db_now() - timedelta(days=99))
    assert retain() == 0
    age(31, "late")
    assert retain() == 1


@pytest.mark.parametrize("status", ["pending", "dead", "discarded"])
def test_what_was_not_posted_is_never_deleted(status):
    put("old", into("OAK", "-1"))
    OutboxEntry.objects.update(status=status, posted_at=db_now() - timedelta(days=99))
    age(99, "old")
    assert retain() == 0
    assert keys() == {"old"}


def test_posted_entry_without_a_transaction_is_kept_for_reconcile():
    put("torn", into("OAK", "1"))
    OutboxEntry.objects.update(status="posted", posted_at=db_now())
    age(99, "torn")
    assert retain() == 0
    assert keys() == {"torn"}


def test_key_stays_taken_after_its_entry_is_gone():
    first = posted("once", 99)
    assert retain() == 1
    again = put("once", into("OAK", "1"))
    drain()
    assert again.pk > first.pk
    assert state(again)[0] == "posted"
    assert balance("stock:OAK") == 1
    assert list(Transaction.objects.values_list("pk", flat=True)) == [first.pk]
    age(99, "once")
    assert retain() == 1, "a duplicate is as dispensable as the entry was"
    with pytest.raises(KeyConflictError):
        put("once", into("OAK", "2"))


def test_entries_behind_a_deleted_one_are_posted():
    posted("head", 99)
    aggregate = "lot:head"
    retain()
    follower = put("follower", lines(("stock:OAK", "-1"), ("external:scrap", "1")),
                   aggregate=aggregate)  # fmt: skip
    drain()
    assert fresh(follower).status == "posted"


def test_deletion_of_what_was_posted_is_audited_as_one():
    posted("old", 99)
    posted("older", 100)
    retain()
    (record,) = AuditRecord.objects.all()
    assert (record.action, record.target_id) == ("retention-applied", "outbox_entries")
    assert record.reason.startswith("OUTBOX_RETENTION_DAYS=30: Posted entries")


@pytest.fixture
def many():
    """Store entries of which one in ten may go, and analyze."""
    store((f"k{n}", f"lot:{n}", into("OAK", "1")) for n in range(3_000))
    drain(limit=1_000)
    old = OutboxEntry.objects.order_by("id").values_list("event_key", flat=True)[:300]
    age(99, *list(old))
    store((f"p{n}", f"lot:{n}", into("OAK", "1")) for n in range(200))
    analyze()


def test_old_entries_are_found_by_the_index_on_status_and_age(many):
    for plan in plans_of(retain, "posted_at"):
        assert index_of(plan[0]) == "outbox_status_age", plan
        text = str(plan).lower()
        assert "filesort" not in text
        assert "temp b-tree" not in text
        if connection.vendor == "sqlite":
            assert "scan" not in text
        else:
            # By its first column alone where the server thinks the rest is worth nothing.
            assert {step["type"] for step in plan} <= {"range", "ref", "eq_ref", "const"}, plan


@pytest.mark.mariadb
def test_young_entries_are_not_read(many):
    assert rows_read(lambda: retain() == 300) < 300 * 12
    assert rows_read(retain) < 300
