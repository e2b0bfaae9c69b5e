"""Gauges of the outbox and questions about its dead entries read none that are posted."""

import pytest
from django.db.models import Count

from ledger import metrics
from ledger.models import ErrorCode, OutboxEntry
from tests.tables import Sql, let_plan, moment, plan_of, plans_of, reads_at_most, store_many, text

pytestmark = pytest.mark.django_db(transaction=True)  # ANALYZE commits

MANY, FEW = 50_000, 50
ENTRIES = OutboxEntry._meta.db_table


@pytest.fixture
def posted():
    """Store many entries that are posted, and amid them a few that are dead or pending."""
    kind = Sql(f"CASE WHEN n % {MANY // FEW} > 2 THEN -1 ELSE n % {MANY // FEW} END")
    store_many(
        OutboxEntry,
        MANY,
        event_key=text("k{n}"),
        event_type="test",
        aggregate=text("lot:{n}"),
        payload={},
        content_hash="0" * 64,
        status=Sql(
            f"CASE {kind} WHEN 0 THEN 'dead' WHEN 1 THEN 'pending' WHEN 2 THEN 'discarded'"
            " ELSE 'posted' END"
        ),
        last_error_code=Sql(
            f"CASE WHEN {kind} <> 0 THEN '' WHEN n % {2 * MANY // FEW} = 0"
            " THEN 'unbalanced' ELSE 'account_closed' END"
        ),
        created_at=moment("n"),
    )
    let_plan(OutboxEntry)


def test_gauges_read_no_posted_entry(posted):
    found = {labels["status"]: value for labels, value in metrics.outbox_entries()}
    assert found == {"pending": FEW, "dead": FEW, "discarded": FEW}
    for plan in plans_of(metrics.outbox_entries, ENTRIES):
        assert not plan.scans, plan
        assert plan.indexes <= {"outbox_claim", "outbox_status_age"}, plan
    assert reads_at_most(4 * FEW, metrics.outbox_entries)
    assert reads_at_most(10, metrics.outbox_oldest_pending_age_seconds)


@pytest.mark.parametrize("order", [("created_at", "id"), ("-created_at", "-id")])
def test_dead_entries_are_listed_by_age_in_the_order_of_their_index(posted, order):
    listed = OutboxEntry.objects.dead().order_by(*order).defer("payload")[:100]
    assert len(listed) == FEW
    plan = plan_of(listed)
    assert plan.indexes == {"outbox_status_age"}, plan
    assert not plan.sorts, plan
    assert reads_at_most(4 * FEW, lambda: list(listed.all()))


def test_dead_entries_of_one_code_are_found_by_it(posted):
    dead = OutboxEntry.objects.dead().filter(last_error_code=ErrorCode.UNBALANCED)
    assert dead.count() == FEW // 2
    for listed in (dead.order_by("id")[:100], dead.order_by("-id")[:100]):
        plan = plan_of(listed)
        assert not plan.scans, plan
        assert plan.indexes <= {"outbox_error_code", "outbox_status_age", "outbox_claim"}, plan
        assert reads_at_most(4 * FEW, lambda listed=listed: list(listed.all()))


def test_dead_entries_are_counted_by_code_without_reading_others(posted):
    by_code = (
        OutboxEntry.objects.dead().order_by().values("last_error_code").annotate(n=Count("pk"))
    )
    assert {row["last_error_code"]: row["n"] for row in by_code} == {
        "unbalanced": FEW // 2,
        "account_closed": FEW // 2,
    }
    plan = plan_of(by_code)
    assert not plan.scans, plan
    assert reads_at_most(4 * FEW, lambda: list(by_code.all())), plan
