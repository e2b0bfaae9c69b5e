"""The console beside many rows: a fixed number of statements, each by its index."""

import pytest

from ledger.models import DeadLetter, OutboxEntry
from recovery import history, metrics
from recovery.models import JobRun
from splits.models import SplitOrder
from tests.adminpages import fill, statements
from tests.tables import Sql, let_plan, moment, plans_of, store_many, text

pytestmark = pytest.mark.django_db(transaction=True)  # ANALYZE commits

MANY = 20_000
PAGES = {
    "/admin/": 10,
    "/admin/dlq/": 5,
    "/admin/dlq/?code=account_closed&older_than=1m": 5,
    "/admin/stuck/": 7,
    "/admin/ledger/deadletter/?group=g3": 7,
}
"""How many statements each takes, session and user included."""
PREVIEW, OF_PREVIEW = "/admin/actions/outbox.redrive/?group=g3", 14
"""It takes a few more where rows are left out, of which it says who changed them last."""


def kill(count):
    """Let the oldest entries be dead, in forty groups."""
    OutboxEntry.objects.filter(pk__lte=count).update(
        status="dead", last_error_code="account_closed"
    )
    store_many(
        DeadLetter,
        count,
        entry=Sql("n"),
        group=text("g{n % 40}"),
        code="account_closed",
        pattern=text("account {n % 40} is closed"),
        died_at=moment("0"),
    )


@pytest.fixture(autouse=True)
def _sampled(db):
    samples = metrics.collect()
    metrics.store(samples)
    history.keep(samples)


@pytest.mark.parametrize("count", [200, MANY])
def test_pages_take_so_many_statements_however_many_rows_there_are(admin_client, count):
    fill(count)
    kill(count // 10)
    statements(admin_client, "/admin/")  # what is read once a process
    taken = {page: len(statements(admin_client, page)) for page in PAGES}
    assert taken == PAGES
    assert len(statements(admin_client, PREVIEW)) <= OF_PREVIEW


@pytest.mark.parametrize("page", [*PAGES, PREVIEW])
def test_pages_read_no_table_of_entries_orders_or_runs_from_end_to_end(admin_client, page):
    fill(MANY)
    kill(MANY // 10)
    let_plan(OutboxEntry, SplitOrder, JobRun, DeadLetter)
    for model in (OutboxEntry, SplitOrder, JobRun):
        for plan in plans_of(lambda: admin_client.get(page), model._meta.db_table):
            # Of the dead all are read, to be counted by cause: they are few beside the others.
            assert not plan.scans or DeadLetter._meta.db_table in plan.text, (page, plan)
