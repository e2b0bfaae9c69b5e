"""What ``selfcheck`` asks of the ledger."""

from dataclasses import replace

import pytest

from ledger import selfcheck
from ledger.models import EntryStatus, OutboxEntry
from ledger.outbox import JOB
from ledger.posting import _Batch
from recovery import registry
from recovery.models import AuditRecord
from recovery.rehearsing import UnprovenError
from recovery.runner import run_job
from recovery.selfcheck import limits
from recovery.selfcheck.limits import is_limited
from tests.ledger.entries import junk, make_due

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("limit", [1, 2, 1_000])
def test_entry_at_its_last_attempt_is_seen_to_die(settings, limit):
    settings.JOB_OUTBOX_MAX_ATTEMPTS = limit
    seen = limits.walk(selfcheck.ENTRIES_DIE)
    assert seen.evidence == f"an entry refused at attempt {limit} was dead"
    assert seen.audited == {"outbox-entry-dead"}
    assert not OutboxEntry.objects.exists()
    assert not AuditRecord.objects.exists()


def test_entry_that_does_not_die_is_told(monkeypatch):
    genuine = _Batch._charge
    monkeypatch.setattr(_Batch, "_charge", lambda *it: replace(genuine(*it), dead=False))
    with pytest.raises(UnprovenError, match="at attempt 10 was pending"):
        is_limited(registry.get(JOB))


def test_entries_of_others_are_left_alone_by_the_walk():
    entry = junk("theirs", {})
    limits.walk(selfcheck.ENTRIES_DIE)
    entry.refresh_from_db()
    assert (entry.status, entry.attempts) == (EntryStatus.PENDING, 0)


def test_growing_dlq_is_told_from_one_that_is_old(settings):
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 1
    assert list(selfcheck.dead_entries()) == []
    junk("a", {})
    assert run_job(JOB).result == {"failed": 1, "dead": 1, "failed:payload_invalid": 1}
    (finding,) = selfcheck.dead_entries()
    assert finding.id == "outbox-dead-growing"
    assert finding.finding.startswith("The DLQ holds 1; 1 died within 24 h.")
    AuditRecord.objects.all()._raw_delete(AuditRecord.objects.db)
    (finding,) = selfcheck.dead_entries()
    assert finding.id == "outbox-dead"


@pytest.mark.parametrize(("late_s", "found"), [(200, []), (310, ["outbox-late"])])
def test_entries_that_nobody_posts_are_told(late_s, found):
    junk("a", {})
    make_due()
    OutboxEntry.objects.update(next_attempt_at=selfcheck.seconds_from_now(-late_s))
    assert [it.id for it in selfcheck.late_entries()] == found
