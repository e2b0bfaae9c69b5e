"""Whatever a list of the admin is asked, the database answers it from an index."""

import re
import uuid
from functools import partial

import pytest
from django.contrib import admin
from django.contrib.messages.storage.cookie import CookieStorage
from django.db import connection
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext

from ledger.admin.entries import newest_of_aggregate
from ledger.models import Account, OutboxEntry, Posting, Transaction
from recovery.admin import paging
from recovery.admin.paging import estimated_rows
from recovery.models import AuditRecord, JobRun
from splits.models import Lot, SplitOrder
from tests.adminpages import fill, list_url, page_url, size_shown, statements
from tests.ledger.entries import into, store
from tests.ledger.test_query_plans import explain, rows_read
from tests.tables import let_plan, reads_at_most

pytestmark = pytest.mark.django_db(transaction=True)  # ANALYZE commits

ROWS, MANY_ROWS = 4_000, 50_000
"""MariaDB rather sorts a table of a few thousand rows than following an index; to SQLite, which
counts none, they are all alike.
"""
FEW = 600
"""More than a page of 100 rows and what belongs to them, fewer than a table."""
MOST_SEARCHED = 6_000
"""A search reads up to 1,000 keys a field, and the rows that they are of."""

RARE = [
    (OutboxEntry, {"status": "dead"}),
    (OutboxEntry, {"status": "discarded"}),
    (OutboxEntry, {"last_error_code": "account_closed"}),
    (OutboxEntry, {"last_error_code": "unbalanced"}),
    (OutboxEntry, {"status": "dead", "last_error_code": "account_closed"}),
    (OutboxEntry, {"status": "posted", "last_error_code": "account_closed"}),
    (OutboxEntry, {"q": "split-order:SO-7:finalized"}),
    (OutboxEntry, {"q": "lot:B7"}),
    (OutboxEntry, {"q": "lot:B7", "status": "dead"}),
    (OutboxEntry, {"q": "7"}),
    (Transaction, {"q": "split-order:SO-7:finalized"}),
    (Transaction, {"q": "7"}),
    (Account, {"state": "closed"}),
    (Account, {"q": "stock:SKU-000007"}),
    (Account, {"q": "SKU-000007"}),
    (Account, {"q": "stock:SKU-000007 [m2]"}),
    (SplitOrder, {"status": "failed"}),
    (SplitOrder, {"status": "quarantined"}),
    (SplitOrder, {"finalization": "in_progress"}),
    (SplitOrder, {"finalization": "stuck"}),
    (SplitOrder, {"q": "SO-7"}),
    (SplitOrder, {"q": "B7"}),
    (Lot, {"status": "cancelled"}),
    (Lot, {"q": "SKU-8"}),
    (Lot, {"q": "B7"}),
    (JobRun, {"status": "died"}),
    (JobRun, {"status": "died", "job": "jobA"}),
    (JobRun, {"q": str(uuid.UUID(int=7))}),
    (AuditRecord, {"action": "job-paused"}),
    (AuditRecord, {"q": "ann"}),
    (AuditRecord, {"q": "job-paused"}),
    (AuditRecord, {"q": "outbox-entry/7"}),
    (AuditRecord, {"q": "17"}),
    (AuditRecord, {"q": str(uuid.UUID(int=7))}),
]
COMMON = [
    (OutboxEntry, {}),
    (OutboxEntry, {"status": "posted"}),
    (Transaction, {}),
    (Account, {}),
    (SplitOrder, {}),
    (SplitOrder, {"status": "finalized"}),
    (Lot, {}),
    (Lot, {"status": "available"}),
    (Lot, {"q": "OAK"}),
    (JobRun, {}),
    (JobRun, {"status": "ok"}),
    (JobRun, {"job": "jobB"}),
    (JobRun, {"job": "jobB", "status": "ok"}),
    (AuditRecord, {}),
    (AuditRecord, {"action": "outbox-entry-dead"}),
    (AuditRecord, {"q": "system:test"}),
]
AMID, WAYS = (1, 5, 9), ("after", "before")

TURNED = {OutboxEntry: "1", Transaction: "2", Account: "-1", SplitOrder: "1", Lot: "6",
          JobRun: "0", AuditRecord: "0"}  # fmt: skip


@pytest.fixture
def filled():
    fill_and_analyze(ROWS)


def fill_and_analyze(count):
    fill(count)
    let_plan(*TURNED, Posting)


def steps_on(model, sql):
    """Return the steps of a statement's plan that read the table of ``model``."""
    table = model._meta.db_table
    steps = explain(sql.replace("%", "%%"))
    if connection.vendor == "sqlite":
        return [it["detail"] for it in steps if it["detail"].split(" ")[1] == table], str(steps)
    return [it for it in steps if it["table"] == table], str(steps)


def run(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql.replace("%", "%%"))
        cursor.fetchall()


def reads_whole_table(step):
    if connection.vendor == "sqlite":
        return step.startswith("SCAN") and "INDEX" not in step
    return step["type"] == "ALL"


def is_sorted(plan):
    return "TEMP B-TREE FOR ORDER BY" in plan or "filesort" in plan


def listed(model, query, user):
    """Return what a list reads at an address, as the admin holds it."""
    request = RequestFactory().get(list_url(model, **query))
    request.user, request._messages = user, CookieStorage(request)
    return admin.site.get_model_admin(model).get_changelist_instance(request)


def faults(model, query, user, size):
    """Return the statements of a list of ``size`` rows that scan its table, sort, or walk far."""
    found = []
    table = model._meta.db_table
    with CaptureQueriesContext(connection) as queries:
        listed(model, query, user)
    for sql in [it["sql"] for it in queries if table in it["sql"]]:
        steps, plan = steps_on(model, sql) if "table_rows" not in sql else ([], "")
        newest_first_by_id = connection.vendor == "sqlite" and "WHERE" not in sql and "LIMIT" in sql
        if any(reads_whole_table(it) for it in steps) and not newest_first_by_id:
            found.append(("scan", sql, plan))
        if size > FEW and "q" not in query and "ORDER BY" in sql:
            if is_sorted(plan):
                found.append(("sort", sql, plan))
            if (query.get("after") or query.get("before")) and not all(map(is_range, steps)):
                found.append(("walk", sql, plan))
    return found


def is_range(step):
    """Tell whether a step begins at the key, and not where the rows of the filter begin."""
    if connection.vendor == "sqlite":
        return bool(re.search(r"[<>]\?\)$", step))
    return step["type"] == "range"


def pages(model, query, user):
    """Yield addresses of a list in both directions, its ends and pages amid it, and its size."""
    for ordered in (query, query | {"o": TURNED[model]}):
        found = listed(model, ordered, user)
        size = found.queryset.count()
        keys = [found.keyset.key_of(found.keyset.rows[size * n // 10]) for n in AMID if size]
        for page in ({}, {"before": ""}, *({way: key} for key in keys for way in WAYS)):
            yield ordered | page, size


@pytest.mark.timeout(900)
def test_any_page_of_a_list_is_read_from_an_index_and_little_else(admin_user, monkeypatch):
    counts = connection.vendor == "mysql"
    fill_and_analyze(MANY_ROWS if counts else ROWS)
    monkeypatch.setattr(paging, "COUNTED_ROWS", 100)
    for model, query in RARE + COMMON:
        for page, size in pages(model, query, admin_user):
            assert not faults(model, page, admin_user, size), (model, page)
            most = MOST_SEARCHED if "q" in query else FEW
            if counts:
                assert reads_at_most(most, partial(listed, model, page, admin_user)), (model, page)


@pytest.mark.mariadb
def test_search_for_what_is_common_stops_at_the_limit(admin_client, filled):
    for model, term in [(Lot, "OAK"), (AuditRecord, "system:test")]:
        found = statements(admin_client, list_url(model, q=term))
        seeks = [sql for sql in found if sql.endswith("LIMIT 1000")]
        assert len(seeks) >= 3
        for sql in seeks:
            assert rows_read(lambda sql=sql: run(sql)) <= 1_000


@pytest.mark.mariadb
def test_pages_of_rows_read_little(admin_client, filled):
    pages = [
        OutboxEntry.objects.get(pk=7),
        Transaction.objects.get(pk=7),
        Account.objects.get(pk=1),  # half of all postings are on it
        SplitOrder.objects.get(pk=7),
        Lot.objects.get(pk=7),
        JobRun.objects.get(pk=7),
        JobRun.objects.get(pk=7).job,
        AuditRecord.objects.get(pk=7),
    ]
    for row in pages:
        url = page_url(row)
        assert rows_read(lambda url=url: admin_client.get(url)) < FEW, row


def test_newest_of_an_aggregate_are_sought_status_by_status(filled):
    store((f"k{n}", "lot:HOT", into("OAK", "1")) for n in range(3_000))
    found = []
    if connection.vendor == "mysql":
        assert rows_read(lambda: found.extend(newest_of_aggregate("lot:HOT"))) < 1_000 * 4
    else:
        found = newest_of_aggregate("lot:HOT")
    newest = OutboxEntry.objects.filter(aggregate="lot:HOT").order_by("-id")
    assert sorted(found, reverse=True) == list(newest.values_list("pk", flat=True)[:1_000])


def test_list_beyond_the_limit_shows_an_estimate(admin_client):
    store((f"k{n}", f"lot:{n}", into("OAK", "1")) for n in range(10_050))
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE TABLE ledger_outboxentry")
            cursor.fetchall()
    assert 7_000 < estimated_rows(OutboxEntry) < 15_000  # by a few pages of the index
    shown = size_shown(admin_client, OutboxEntry)
    assert "about 1" in shown or "more than 10,000 outbox entries" in shown
    shown = size_shown(admin_client, OutboxEntry, status="pending")
    assert shown == "more than 10,000 outbox entries"
