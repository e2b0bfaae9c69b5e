"""From a name to its page: what a log line, an alarm or a person calls it."""

import re
from urllib.parse import quote, urlencode

import pytest
from django.utils.html import strip_tags

from ledger.models import Account, OutboxEntry, Transaction
from recovery.models import Job, JobRun, Plan
from splits.models import Lot, SplitOrder
from tests.adminpages import list_url, page_url, staff
from tests.factories import LotFactory, SplitOrderFactory
from tests.ledger.entries import drain, into, put

pytestmark = pytest.mark.django_db


@pytest.fixture
def everybody():
    return staff(
        "ann",
        *(f"view_{it._meta.model_name}" for it in (SplitOrder, OutboxEntry, Transaction, Lot)),
        *(f"view_{it._meta.model_name}" for it in (Account, Job, JobRun, Plan)),
    )


def path_of(name):
    return f"/admin/go/{quote(name)}"


def leads(client, name):
    """Return where a name leads, by its path and by the field of the search alike."""
    places = {
        client.get(url).headers.get("Location")
        for url in (path_of(name), f"/admin/go/?{urlencode({'q': name})}")
    }
    assert len(places) == 1, places
    return places.pop()


def said(response):
    return re.sub(r"\s+", " ", strip_tags(response.content.decode().replace("<", " <")))


def test_order_is_found_by_its_number(everybody):
    order = SplitOrderFactory(number="SO-1")
    assert leads(everybody, "SO-1") == page_url(order)
    assert leads(everybody, "  SO-1 ") == page_url(order)


def test_event_key_leads_to_the_entry_and_once_that_is_gone_to_the_transaction(everybody):
    entry = put("split-order:SO-9:finalized", into("OAK", "1"))
    drain()
    assert leads(everybody, entry.event_key) == page_url(entry)
    OutboxEntry.objects.all().delete()
    assert leads(everybody, entry.event_key) == page_url(Transaction.objects.get())


def test_event_key_without_entry_and_transaction_leads_to_its_order(everybody):
    order = SplitOrderFactory(number="SO-9")
    assert leads(everybody, "split-order:SO-9:finalized") == page_url(order)


def test_lot_is_found_by_its_code(everybody):
    lot = LotFactory(code="B-7")
    SplitOrderFactory(source_lot=lot)
    assert leads(everybody, "B-7") == page_url(lot)


def test_sku_of_several_lots_leads_to_their_list_and_of_one_to_its_page(everybody):
    LotFactory.create_batch(2, sku="OAK")
    ash = LotFactory(sku="ASH")
    assert leads(everybody, "OAK") == list_url(Lot, q="OAK")
    assert everybody.get(list_url(Lot, q="OAK")).context["cl"].result_count == 2
    assert leads(everybody, "ASH") == page_url(ash)


def test_account_is_found_by_its_code_and_with_its_unit(everybody):
    put("a", into("OAK", "1"))
    drain()
    account = Account.objects.get(code="stock:OAK")
    for name in ("stock:OAK", "stock:OAK [m2]", "OAK"):
        assert leads(everybody, name) == page_url(account)
    Account.objects.create(code="stock:OAK", unit="pcs")
    assert leads(everybody, "stock:OAK") == list_url(Account, q="stock:OAK")
    assert leads(everybody, "stock:OAK [m2]") == page_url(account)


def test_job_run_and_plan_are_found(everybody):
    job = Job.objects.create(name="outbox:2")
    run = JobRun.objects.create(job=job, fence=1, host="h", pid=1)
    plan = Plan.objects.create(pk=70_001, action="split.retry", actor="ann", reason="x")
    assert leads(everybody, "outbox:2") == page_url(job)
    assert leads(everybody, str(run.run_id)) == page_url(run)
    assert leads(everybody, run.run_id.hex) == page_url(run)
    assert leads(everybody, "70001") == page_url(plan)


def test_number_is_a_name_first_and_an_id_then(everybody):
    LotFactory(pk=80_001, code="some")
    assert leads(everybody, "80001") == page_url(Lot.objects.get(code="some"))
    named = LotFactory(code="80001")
    assert leads(everybody, "80001") == page_url(named)


def test_unknown_name_is_not_found_and_what_was_looked_for_is_said(everybody):
    response = everybody.get(path_of("SO-<b>none</b>"))
    assert response.status_code == 404
    content = response.content.decode()
    assert "Nothing is called “SO-&lt;b&gt;none&lt;/b&gt;”." in content
    assert 'value="SO-&lt;b&gt;none&lt;/b&gt;"' in content
    assert "Looked for, exactly as written" in said(response)


@pytest.mark.parametrize("rest", ["", "?q=", "?q=%20", "%20"])
def test_blank_name_asks_for_one(everybody, rest):
    response = everybody.get(f"/admin/go/{rest}")
    assert response.status_code == 200
    assert "Nothing is called" not in said(response)


def test_what_may_not_be_seen_is_not_found():
    order = SplitOrderFactory(number="SO-1")
    Job.objects.create(name="aJob")
    client = staff("bob", "view_job")
    for name in ("SO-1", order.source_lot.code, order.source_lot.sku, str(order.pk)):
        assert client.get(path_of(name)).status_code == 404, name
    assert client.get(path_of("aJob")).status_code == 302
    assert staff("eve").get(path_of("aJob")).status_code == 404


@pytest.mark.parametrize(
    "number",
    [
        "SO/1/2",
        "SO 1 of 2",
        "SO'1\"2",
        "SO%2F1",
        "SO?q=1&x#2",
        "订单-1",
        "SO-😀",
        "../SO",
        "x" * 50,
    ],
)
def test_name_with_odd_characters_is_found(everybody, number):
    order = SplitOrderFactory(number=number)
    assert leads(everybody, number) == page_url(order)


def test_row_whose_key_is_an_odd_name_has_an_address_that_works(everybody):
    job = Job.objects.create(name="out/box 2'\"_2F")
    where = leads(everybody, job.name)
    assert where == page_url(job)
    assert everybody.get(where).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "x" * 190,
        "x" * 500,
        "x" * 501,
        "x" * 3_000,
        "9" * 18,
        "9" * 40,
        "9" * 500,
        "²",
        "٣٣",
        "-1",
        "1.5",
        "{}",
        "%",
        "_",
        "%%s",
        "\\",
        "a\0b",
        "' OR 1=1 --",
    ],
)
def test_name_that_cannot_be_is_not_found(everybody, name):
    SplitOrderFactory()
    for url in (path_of(name), f"/admin/go/?{urlencode({'q': name})}"):
        assert everybody.get(url).status_code == 404


def test_name_too_long_is_shown_cut(everybody):
    content = everybody.get(path_of("x" * 600)).content.decode()
    assert "x" * 500 in content
    assert "x" * 501 not in content
