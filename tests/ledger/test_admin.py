"""The ledger in the admin: entries with their reason, transactions, accounts that add up."""

import json
import re
from decimal import Decimal

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection

from ledger.admin import accounts as account_admin
from ledger.admin import asked, entries, transactions
from ledger.models import Account, EntryStatus, OutboxEntry, Posting, Transaction
from recovery.admin import search, tables
from recovery.models import AuditRecord
from tests.adminpages import list_url, listed, page_url, statements, text_of
from tests.factories import LotFactory, SplitOrderFactory
from tests.ledger.entries import drain, fresh, into, junk, lines, put, store

pytestmark = pytest.mark.django_db(transaction=True)


def html(client, row):
    response = client.get(page_url(row))
    assert response.status_code == 200
    return response.content.decode()


def dead(key="k", what=None, **extra):
    entry = put(key, what or into("OAK", "-1"), **extra)
    drain(max_attempts=1)
    assert fresh(entry).status == EntryStatus.DEAD
    return fresh(entry)


# Outbox entries


def test_dead_entry_says_why(admin_client):
    entry = dead()
    for page in (list_url(OutboxEntry), list_url(OutboxEntry, status="dead"), page_url(entry)):
        shown = text_of(admin_client, page)
        assert "balance would fall below zero" in shown, page
        assert "stock:OAK" in shown


def test_page_shows_the_postings_asked_for_and_how_their_accounts_stand(admin_client):
    put("in", into("OAK", "12.5"))
    drain()
    Account.objects.filter(code="stock:OAK").close()
    entry = dead(what=lines(("stock:OAK", "-4.25"), ("stock:NEW", "4.25")))
    Account.objects.filter(code="stock:NEW").delete()
    page = html(admin_client, entry)
    oak = Account.objects.get(code="stock:OAK")
    assert f'<a href="{page_url(oak)}">stock:OAK</a>' in page
    shown = text_of(admin_client, page_url(entry))
    assert "stock:OAK -4.25 m2 closed 12.5 m2" in shown
    assert "stock:NEW 4.25 m2 not there yet" in shown
    assert "&quot;schema_version&quot;: 1" in page


def test_posted_entry_and_its_transaction_lead_to_each_other(admin_client):
    entry = put("k", into("OAK", "1"))
    drain()
    transaction = Transaction.objects.get()
    assert f'href="{page_url(transaction)}"' in html(admin_client, entry)
    assert f'href="{page_url(entry)}"' in html(admin_client, transaction)


def test_entry_and_transaction_lead_to_the_order_or_lot_that_published_them(admin_client):
    put("in", into("OAK", "100"))
    order = SplitOrderFactory(source_lot=LotFactory(code="B:1"), number="a:b", at="finalized")
    entry = OutboxEntry.objects.get(event_key=order.event_key)
    received = put("lot:B:1:received", into("OAK", "1"))
    assert f'href="{page_url(order)}"' in html(admin_client, entry)
    assert f'href="{page_url(order.source_lot)}"' in html(admin_client, received)
    drain()
    posted = Transaction.objects.get(event_key=order.event_key)
    assert f'href="{page_url(order)}"' in html(admin_client, posted)


@pytest.mark.parametrize("key", ["split-order:gone:finalized", "lot:gone:received", "odd", "a:b"])
def test_entry_of_what_is_gone_is_shown(admin_client, key):
    assert key in html(admin_client, put(key, into("OAK", "1")))


def test_entry_behind_a_dead_one_says_what_it_waits_for(admin_client):
    head = dead(aggregate="lot:1")
    follower = put("late", into("OAK", "1"), aggregate="lot:1")
    other = put("other", into("OAK", "1"))
    assert f'href="{page_url(head)}"' in html(admin_client, follower)
    assert f'href="{page_url(head)}"' not in html(admin_client, other)
    assert f'href="{page_url(follower)}"' not in html(admin_client, head)


def test_entry_waits_for_the_first_one_whatever_its_status(admin_client):
    first = put("first", into("OAK", "1"), aggregate="lot:1")
    second = put("second", into("OAK", "1"), aggregate="lot:1")
    third = put("third", into("OAK", "1"), aggregate="lot:1")
    OutboxEntry.objects.filter(pk=second.pk).update(status="dead")
    assert f'href="{page_url(first)}"' in html(admin_client, third)
    OutboxEntry.objects.filter(pk=first.pk).update(status="posted")
    assert f'href="{page_url(second)}"' in html(admin_client, third)


def test_page_shows_the_audit_records_of_the_entry(admin_client):
    entry = dead()
    record = AuditRecord.objects.get(action="outbox-entry-dead")
    assert f'href="{page_url(record)}"' in html(admin_client, entry)
    assert f'href="{page_url(entry)}"' in html(admin_client, record)


@pytest.mark.parametrize(
    "payload",
    [
        [],
        {},
        "text",
        7,
        {"postings": None},
        {"postings": {"a": 1}},
        {"postings": [1, None, [], {"account": {"deep": [1]}, "quantity": "🪵", "unit": 1}]},
        {"postings": [{"account": "<script>alert(1)</script>"}]},
    ],
)
def test_any_payload_can_be_looked_at(admin_client, payload):
    entry = junk("k", payload)
    page = html(admin_client, entry)
    assert "<script>alert" not in page
    assert "Postings asked for" in page


@pytest.mark.sqlite
def test_payload_nested_too_deeply_to_read_is_shown_as_it_stands(admin_client):
    entry = junk("k", {})
    with connection.cursor() as cursor:
        deep = '{"postings":' + "[" * 900 + "]" * 900 + "}"
        cursor.execute("UPDATE ledger_outboxentry SET payload = %s WHERE id = %s", [deep, entry.pk])
    assert "[[[[[[[[" in html(admin_client, entry).replace(" ", "").replace("\n", "")
    assert admin_client.get(list_url(OutboxEntry)).status_code == 200


def test_unreadable_payload_is_shown_raw():
    admin_ = entries.OutboxEntryAdmin(OutboxEntry, None)
    entry = OutboxEntry()
    entry.payload_text, entry.reader = '{"broken', User(is_superuser=True)
    assert "{&quot;broken" in admin_.payload_shown(entry)
    assert asked.lines_table('{"broken').rows == []


def test_large_payload_is_cut_and_it_is_said(admin_client, monkeypatch):
    monkeypatch.setattr(tables, "SHOWN_CHARACTERS", 100)
    monkeypatch.setattr(asked, "SHOWN_LINES", 3)
    entry = put("k", lines(*[(f"stock:S{n}", "1") for n in range(9)], ("external:receipts", "-9")))
    shown = text_of(admin_client, page_url(entry))
    assert "The first 3 of 10." in shown
    assert "characters more" in shown
    assert "stock:S2" in shown
    assert "stock:S5 1" not in shown


def test_lists_read_neither_payloads_nor_whole_errors(admin_client):
    dead()
    put("k2", into("OAK", "1"))
    for sql in statements(admin_client, list_url(OutboxEntry)):
        assert "payload" not in sql
        assert "content_hash" not in sql
        assert not re.search(r"\.[`\"]last_error[`\"](, [`\"]| FROM)", sql)


def test_entries_are_found_by_key_aggregate_and_id(admin_client):
    first = put("k:1", into("OAK", "1"), aggregate="lot:A")
    second = put("k:2", into("OAK", "1"), aggregate="lot:A")
    put("K:1", into("OAK", "1"), aggregate="lot:a")
    OutboxEntry.objects.filter(pk=first.pk).update(status="dead")
    assert listed(admin_client, OutboxEntry, q="k:1") == [first.pk]
    assert listed(admin_client, OutboxEntry, q="lot:A") == [second.pk, first.pk]
    assert listed(admin_client, OutboxEntry, q=str(second.pk)) == [second.pk]
    assert listed(admin_client, OutboxEntry, q="lot:A", status="dead") == [first.pk]
    assert listed(admin_client, OutboxEntry, q="k:") == []


def test_newest_of_a_crowded_aggregate_are_found(admin_client, monkeypatch):
    monkeypatch.setattr(search, "FOUND_ROWS", 5)
    monkeypatch.setattr(entries, "FOUND_ROWS", 5)
    store((f"k{n}", "lot:A", into("OAK", "1")) for n in range(12))
    ids = list(OutboxEntry.objects.order_by("-id").values_list("pk", flat=True))
    OutboxEntry.objects.filter(pk__in=ids[::2]).update(status="posted")
    assert listed(admin_client, OutboxEntry, q="lot:A") == ids[:5]


def test_entries_are_filtered_newest_first(admin_client):
    first, second = dead("a"), dead("b")
    put("c", into("OAK", "1"))
    broken = junk("d", {})
    drain(max_attempts=1)
    assert listed(admin_client, OutboxEntry, status="dead") == [broken.pk, second.pk, first.pk]
    code = "insufficient_balance"
    assert listed(admin_client, OutboxEntry, last_error_code=code) == [second.pk, first.pk]
    assert listed(admin_client, OutboxEntry, last_error_code=code, status="posted") == []
    assert listed(admin_client, OutboxEntry, status="dead", o="2") == [
        first.pk,
        second.pk,
        broken.pk,
    ]


# Transactions


def test_transaction_shows_its_postings(admin_client):
    put("k", into("OAK", "12.5"))
    drain()
    transaction = Transaction.objects.get()
    account = Account.objects.get(code="stock:OAK")
    assert f'<a href="{page_url(account)}">stock:OAK</a>' in html(admin_client, transaction)
    shown = text_of(admin_client, page_url(transaction))
    assert "stock:OAK 12.5 m2" in shown
    assert "external:receipts -12.5 m2" in shown


def test_long_transaction_is_cut_and_it_is_said(admin_client, monkeypatch):
    monkeypatch.setattr(transactions, "SHOWN_LINES", 3)
    put("k", lines(*[(f"stock:S{n}", "1") for n in range(3)], ("external:receipts", "-3")))
    drain()
    shown = text_of(admin_client, page_url(Transaction.objects.get()))
    assert "The first 3; the rest is in the database." in shown
    assert "external:receipts" not in shown


def test_transaction_outlives_its_entry(admin_client):
    entry = put("k", into("OAK", "1"))
    drain()
    OutboxEntry.objects.filter(pk=entry.pk).delete()
    assert f"Outbox entry {tables.NOTHING}" in text_of(
        admin_client, page_url(Transaction.objects.get())
    )


def test_transactions_are_found_by_key_and_id(admin_client):
    for key in ("k:1", "k:2"):
        put(key, into("OAK", "1"))
    drain()
    first = Transaction.objects.get(event_key="k:1")
    assert listed(admin_client, Transaction, q="k:1") == [first.pk]
    assert listed(admin_client, Transaction, q=str(first.pk)) == [first.pk]


# Accounts


def rows_of(account):
    return [[str(cell) for cell in row[2:]] for row in account_admin.postings_table(account).rows]


def test_balance_runs_through_the_latest_postings(admin_client):
    for number, quantity in enumerate(("10", "-2.5", "0.000001", "-7.500001")):
        put(f"k{number}", into("OAK", quantity))
        drain()
    account = Account.objects.get(code="stock:OAK")
    assert rows_of(account) == [
        ["-7.500001", "0"],
        ["0.000001", "7.500001"],
        ["-2.5", "7.5"],
        ["10", "10"],
    ]
    transaction = Transaction.objects.get(event_key="k0")
    assert f'href="{page_url(transaction)}"' in html(admin_client, account)


def test_balance_runs_back_from_today_where_older_postings_are_left_out(monkeypatch):
    monkeypatch.setattr(account_admin, "SHOWN_POSTINGS", 2)
    for number in range(5):
        put(f"k{number}", into("OAK", "1.1"))
    drain()
    assert rows_of(Account.objects.get(code="stock:OAK")) == [["1.1", "5.5"], ["1.1", "4.4"]]


def test_balance_and_postings_come_from_one_statement(django_assert_num_queries):
    put("k", into("OAK", "1"))
    drain()
    account = Account.objects.get(code="stock:OAK")
    with django_assert_num_queries(2) as queries:
        account_admin.postings_table(account)
    assert "ledger_posting" in queries[0]["sql"]
    assert "balance" in queries[0]["sql"]


def test_account_without_postings_is_shown(admin_client):
    account = Account.objects.create(code="stock:NEW", unit="m2")
    assert "Nothing has been posted to this account." in text_of(admin_client, page_url(account))


def test_accounts_are_found_by_code_sku_name_and_id(admin_client):
    oak = Account.objects.create(code="stock:OAK", unit="m2")
    pieces = Account.objects.create(code="stock:OAK", unit="pcs")
    Account.objects.create(code="stock:ASH", unit="m2")
    both = [oak.pk, pieces.pk]
    assert listed(admin_client, Account, q="stock:OAK") == both
    assert listed(admin_client, Account, q="OAK") == both
    assert listed(admin_client, Account, q="stock:OAK [pcs]") == [pieces.pk]
    assert listed(admin_client, Account, q=str(oak.pk)) == [oak.pk]
    assert listed(admin_client, Account, q="stock:oak") == []
    assert listed(admin_client, Account, q="[]") == []


def test_accounts_stand_by_code_and_can_be_turned_round(admin_client):
    for code in ("stock:B", "stock:A", "stock:C"):
        Account.objects.create(code=code, unit="m2")
    codes = [Account.objects.get(pk=pk).code for pk in listed(admin_client, Account)]
    assert codes == ["stock:A", "stock:B", "stock:C"]
    assert listed(admin_client, Account, o="-1") == listed(admin_client, Account)[::-1]


def test_closed_accounts_are_listed_latest_first(admin_client):
    ids = [Account.objects.create(code=f"stock:{n}", unit="m2").pk for n in range(3)]
    for pk in (ids[1], ids[0]):
        Account.objects.filter(pk=pk).close()
    Account.objects.filter(pk=ids[1]).update(closed_at="2026-01-01T00:00:00Z")
    assert listed(admin_client, Account, state="closed") == [ids[0], ids[1]]


def test_large_balances_are_shown_exactly(admin_client):
    balance = Decimal("123456789.123456")
    account = Account.objects.create(code="stock:A", unit="m2", balance=balance)
    assert "123456789.123456 m2" in text_of(admin_client, page_url(account))
    assert "123456789.123456 m2" in text_of(admin_client, list_url(Account))


def test_posting_is_nobodys_to_edit():
    assert not admin.site.is_registered(Posting)


def test_payload_is_pretty_and_unicode_stays_readable(admin_client):
    entry = junk("k", {"note": "木板 🪵"})
    assert "木板 🪵" in html(admin_client, entry)
    assert json.dumps("木板")[1:7] not in html(admin_client, entry)
