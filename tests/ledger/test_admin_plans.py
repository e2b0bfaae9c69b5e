"""Whatever a list of the admin is asked, the database answers it from an index."""

import re
import uuid

import pytest
from django.db import connection

from ledger.admin.entries import newest_of_aggregate
from ledger.models import Account, OutboxEntry, Posting, Transaction
from recovery.admin import paging
from recovery.admin.paging import estimated_rows
from recovery.models import AuditRecord, JobRun
from splits.models import Lot, SplitOrder
from tests.adminpages import fill, list_url, listed, page_url, size_shown, statements
from tests.ledger.entries import into, store
from tests.ledger.test_query_plans import explain, index_of, rows_read

pytestmark = pytest.mark.django_db(transaction=True)  # ANALYZE commits

ROWS = 4_000
FEW = 600
"""More than a page of 100 rows and what belongs to them, fewer than a table."""

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
MAY_SORT = {"q", "finalization"}
"""At most 999 found rows, or as many orders as there are workers; two filters leave few, too."""

TURNED = {OutboxEntry: "1", Transaction: "2", Account: "-1", SplitOrder: "1", Lot: "6",
          JobRun: "0", AuditRecord: "0"}  # fmt: skip


@pytest.fixture
def filled():
    fill(ROWS)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":  # analyzed by nobody, unless another test did it
            cursor.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'")
            if cursor.fetchone():
                cursor.execute("DROP TABLE sqlite_stat1")
                connection.close()  # what is read of it stays with the connection
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            for model in (*TURNED, Posting):
                cursor.execute(f"ANALYZE TABLE {model._meta.db_table}")
                cursor.fetchall()


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


def faults(client, model, query, **order):
    """Return the statements of a list on its own table that scan or sort it."""
    found = []
    table = model._meta.db_table
    for sql in statements(client, list_url(model, **query, **order)):
        steps, plan = steps_on(model, sql) if table in sql and "table_rows" not in sql else ([], "")
        newest_first_by_id = connection.vendor == "sqlite" and "WHERE" not in sql and "LIMIT" in sql
        if any(reads_whole_table(it) for it in steps) and not newest_first_by_id:
            found.append(("scan", sql, plan))
        is_page_of_keys = re.search(r"id[`\"] IN \(", sql)
        if is_sorted(plan) and not (query.keys() & MAY_SORT or len(query) > 1 or is_page_of_keys):
            found.append(("sort", sql, plan))
    return found


def test_no_list_scans_or_sorts_its_table(admin_client, filled):
    for model, query in RARE + COMMON:
        assert not faults(admin_client, model, query), (model, query)
        if "q" not in query:
            assert not faults(admin_client, model, query, o=TURNED[model]), (model, query)


@pytest.mark.mariadb
def test_lists_read_little_more_than_they_show(admin_client, filled, monkeypatch):
    monkeypatch.setattr(paging, "PAGED_ROWS", 100)
    for model, query in RARE:
        url = list_url(model, **query)
        assert rows_read(lambda url=url: admin_client.get(url)) < FEW, (model, query)
    for model, query in COMMON:
        if "q" in query:
            continue
        for order in ({}, {"o": TURNED[model]}):
            url = list_url(model, **query, **order)
            assert rows_read(lambda url=url: admin_client.get(url)) < 1_000, (model, query, order)


@pytest.mark.mariadb
@pytest.mark.parametrize(("model", "term"), [(Lot, "OAK"), (AuditRecord, "system:test")])
def test_search_for_what_is_common_stops_at_the_limit(admin_client, filled, model, term):
    found = statements(admin_client, list_url(model, q=term))
    seeks = [sql for sql in found if sql.endswith("LIMIT 1000")]
    assert len(seeks) >= 3
    for sql in seeks:
        assert rows_read(lambda sql=sql: run(sql)) <= 1_000


@pytest.mark.mariadb
def test_deep_pages_read_their_keys_from_an_index(admin_client, filled):
    keys = [
        it
        for it in statements(admin_client, list_url(Account, p=30))
        if "OFFSET" in it and "ledger_account" in it
    ]
    (step,) = explain(keys[0])
    assert index_of(step) == "account_code_unit"
    assert "Using index" in step["Extra"]
    assert "filesort" not in step["Extra"]


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
    assert 9_000 < estimated_rows(OutboxEntry) < 11_500
    shown = size_shown(admin_client, OutboxEntry)
    assert "about 1" in shown or "more than 10,000 outbox entries" in shown
    shown = size_shown(admin_client, OutboxEntry, status="pending")
    assert shown.endswith("more than 10,000 outbox entries: narrow it down")
    assert len(listed(admin_client, OutboxEntry, p=100)) == 100
    assert admin_client.get(list_url(OutboxEntry, p=101)).status_code == 302
