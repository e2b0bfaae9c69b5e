"""What retention removes is missed neither by reconcile nor by a reversal."""

from datetime import timedelta

import pytest

from ledger.models import OutboxEntry
from recovery.clock import db_now
from recovery.runner import run_job
from splits import lifecycle
from splits.finalize import finalize
from splits.models import OrderStatus, SplitOrder, StuckSighting
from splits.reconcile import Report, reconcile
from tests.factories import AUTHOR
from tests.ledger.entries import drain
from tests.splits.plans import imported, order, plan

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_redis(no_redis):
    pass


def retain():
    outcome = run_job("auditArchive")
    assert outcome.status == "ok", outcome
    return outcome.result


def found():
    findings = []
    reconcile(Report(on_finding=findings.append))
    return findings


def test_order_is_reconciled_and_reversed_after_its_entries_are_gone():
    imported(plan(*order("SO-1")), finalize=True)
    this = SplitOrder.objects.get()
    assert finalize(this.pk, author=AUTHOR, now=True)
    drain()
    long_ago = db_now() - timedelta(days=99)
    entries = OutboxEntry.objects.all()
    assert entries.update(created_at=long_ago, posted_at=long_ago) == 2
    assert retain() == {"outbox_entries_deleted": 2}
    assert found() == []
    assert lifecycle.reverse(this.pk, author=AUTHOR)
    drain()
    assert SplitOrder.objects.get().status == OrderStatus.REVERSED
    assert found() == []


def test_old_sightings_go():
    for order_id, age_days in ((1, 29.9), (2, 30.1)):
        StuckSighting.objects.create(
            order_ref=order_id, epoch=1, seen_at=db_now() - timedelta(days=age_days)
        )
    assert retain() == {"stuck_sightings_deleted": 1}
    assert [it.order_ref for it in StuckSighting.objects.all()] == [1]
