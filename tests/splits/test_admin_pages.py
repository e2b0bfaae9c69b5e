"""Pages of lists go by the key of a row: every row is reached, once, in both directions."""

import re
from datetime import UTC, datetime
from html import unescape

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test import Client

from ledger.models import Account, OutboxEntry, Transaction
from recovery.admin.rows import ReadOnlyAdmin
from recovery.models import AuditRecord, Job, JobRun
from splits.models import Breaker, Lot, SplitOrder
from tests.adminpages import fill, list_url, listed, size_shown
from tests.ledger.entries import into, store
from tests.tables import Sql, store_many, text

pytestmark = pytest.mark.django_db

PER_PAGE = 7
ROWS = 40
LISTS = [
    (OutboxEntry, {}, "1"),
    (OutboxEntry, {"status": "posted"}, "1"),
    (OutboxEntry, {"last_error_code": "account_closed"}, "1"),
    (OutboxEntry, {"status": "dead", "last_error_code": "account_closed"}, "1"),
    (OutboxEntry, {"q": "lot:B7"}, "1"),
    (Transaction, {}, "2"),
    (Account, {}, "-1"),
    (Account, {"state": "closed"}, "1"),
    (SplitOrder, {}, "1"),
    (SplitOrder, {"status": "finalized"}, "1"),
    (SplitOrder, {"status": "failed", "finalization": "in_progress"}, "1"),
    (Lot, {"status": "available"}, "6"),
    (Lot, {"q": "OAK"}, "6"),
    (JobRun, {}, "0"),
    (JobRun, {"job": "jobA"}, "0"),
    (JobRun, {"status": "ok"}, "0"),
    (JobRun, {"job": "jobA", "status": "ok"}, "0"),
    (AuditRecord, {"action": "outbox-entry-dead"}, "0"),
    (AuditRecord, {"q": "system:test", "action": "outbox-entry-dead"}, "0"),
    (Job, {}, None),
    (Breaker, {}, None),
]


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(ReadOnlyAdmin, "list_per_page", PER_PAGE)


@pytest.fixture
def filled(small_pages):
    """Fill the tables with rows many of which only their last column tells apart."""
    fill(ROWS)
    JobRun.objects.update(fence=1)
    store_many(Account, ROWS, code=text("stock:SKU-{SUBSTR(1000000 + n, 2)}"), unit="m3")
    store_many(Account, 9, code="a,b_c", unit=text("u{n}"))
    Account.objects.filter(unit="u1").update(closed_at=datetime(2027, 1, 1, tzinfo=UTC))
    Account.objects.filter(code="a,b_c").exclude(unit="u1").update(closed_at=Now())
    store_many(Job, 20, name=text("job:{n}"))
    store_many(Breaker, 20, endpoint=text("https://host/{n}?a=1&b=%2C"))


def ways_of(response):
    """Return the links of a page by their text, as its HTML has them."""
    shown = response.content.decode().partition('<p class="paginator">')[2].partition("</p>")[0]
    return {text: unescape(url) for url, text in re.findall(r'<a href="(.*?)">(.*?)</a>', shown)}


def walk(client: Client, url, way):
    """Yield what each page shows, from ``url`` on, as long as a link leads the same way."""
    address = url.partition("?")[0]
    while url:
        response = client.get(url)
        assert response.status_code == 200, response.headers
        yield [row.pk for row in response.context["cl"].result_list]
        query = ways_of(response).get(way)
        url = address + query if query else None


def follow(client, url, *ways):
    """Return the address one arrives at, and what is shown there."""
    address = url.partition("?")[0]
    for way in ways:
        url = address + ways_of(client.get(url))[way]
    return url, [row.pk for row in client.get(url).context["cl"].result_list]


@pytest.mark.parametrize(("model", "query", "turned"), LISTS)
def test_every_row_is_reached_once_in_both_directions(admin_client, filled, model, query, turned):
    for order in ({}, {"o": turned}) if turned else ({},):
        whole = listed(admin_client, model, all="", **query, **order)
        url = list_url(model, **query, **order)
        ahead = list(walk(admin_client, url, "Next"))
        assert [pk for page in ahead for pk in page] == whole
        assert all(len(page) == PER_PAGE for page in ahead[:-1])
        last = list_url(model, before="", **query, **order)
        back = list(walk(admin_client, last, "Previous"))
        assert back[0] == whole[-PER_PAGE:]
        assert back[-1] == whole[:PER_PAGE]
        assert sorted({pk for page in back for pk in page}) == sorted(whole)


def test_links_lead_to_the_ends_and_there_and_back(admin_client, filled):
    whole = list(AuditRecord.objects.order_by("-id").values_list("pk", flat=True))
    first = list_url(AuditRecord)
    assert follow(admin_client, first, "Last")[1] == whole[-PER_PAGE:]
    assert follow(admin_client, first, "Next", "Next", "First")[1] == whole[:PER_PAGE]
    assert follow(admin_client, first, "Next", "Next", "Previous")[1] == whole[PER_PAGE:14]
    assert follow(admin_client, first, "Last", "Previous", "Next")[1] == whole[-PER_PAGE:]


def test_ends_of_a_list_have_no_links_beyond(admin_client, filled):
    first = admin_client.get(list_url(AuditRecord))
    assert list(ways_of(first)) == ["Next", "Last", "Show all"]
    last = admin_client.get(list_url(AuditRecord, before=""))
    assert list(ways_of(last)) == ["First", "Previous", "Show all"]
    (amid, _rows) = follow(admin_client, list_url(AuditRecord), "Next")
    ways = ways_of(admin_client.get(amid))
    assert list(ways) == ["First", "Previous", "Next", "Last", "Show all"]


def test_list_of_one_page_has_no_links(admin_client, small_pages):
    store((f"k{n}", "lot:a", into("OAK", "1")) for n in range(PER_PAGE))
    assert ways_of(admin_client.get(list_url(OutboxEntry))) == {}
    assert ways_of(admin_client.get(list_url(OutboxEntry, before=""))) == {}
    assert size_shown(admin_client, OutboxEntry) == "7 outbox entries"


def test_empty_list_has_no_links(admin_client):
    assert ways_of(admin_client.get(list_url(OutboxEntry, status="dead"))) == {}
    assert listed(admin_client, OutboxEntry, after="7") == []
    assert listed(admin_client, OutboxEntry, before="2026-01-01,7", status="dead") == []


def test_links_keep_search_filters_and_direction(admin_client, filled):
    query = {"q": "system:test", "action": "outbox-entry-dead", "o": "0"}
    url, shown = follow(admin_client, list_url(AuditRecord, **query), "Next", "Next")
    assert shown == listed(admin_client, AuditRecord, all="", **query)[14:21]
    page = admin_client.get(url)
    assert list(ways_of(page))[:2] == ["First", "Previous"]
    for address in ways_of(page).values():
        assert {"q=system%3Atest", "action=outbox-entry-dead", "o=0"} <= set(
            address.removeprefix("?").split("&")
        )
    assert ways_of(page)["First"] == "?action=outbox-entry-dead&o=0&q=system%3Atest"


def test_other_links_of_a_page_lead_to_the_first_one(admin_client, filled):
    url, _rows = follow(admin_client, list_url(AuditRecord), "Next")
    content = admin_client.get(url).content.decode()
    ways = content.partition('<p class="paginator">')[2].partition("</p>")[0]
    assert "after=" in ways
    assert "after=" not in content.replace(ways, "").partition('id="content"')[2]
    assert 'name="after"' not in content


def test_new_rows_do_not_shift_the_pages(admin_client, filled):
    whole = list(AuditRecord.objects.order_by("-id").values_list("pk", flat=True))
    url, _rows = follow(admin_client, list_url(AuditRecord), "Next")
    store_many(AuditRecord, 3, actor="a", action="b", target_type="c", target_id="d")
    assert follow(admin_client, url)[1] == whole[7:14]
    # What is new stands on the page before.
    assert follow(admin_client, url, "Previous")[1] == whole[:7]
    assert len(follow(admin_client, url, "Previous", "Previous")[1]) == PER_PAGE


@pytest.mark.parametrize(("model", "query"), [(OutboxEntry, {"status": "posted"}), (JobRun, {})])
def test_key_of_a_row_that_is_gone_is_as_good(admin_client, filled, model, query):
    url, shown = follow(admin_client, list_url(model, **query), "Next")
    newest = listed(admin_client, model, **query)
    model.objects.filter(pk=newest[-1]).delete()
    assert follow(admin_client, url)[1] == shown


def test_key_beyond_the_ends_leads_to_the_nearest_page(admin_client, filled):
    whole = list(AuditRecord.objects.order_by("-id").values_list("pk", flat=True))
    assert listed(admin_client, AuditRecord, after="0") == whole[-PER_PAGE:]
    assert listed(admin_client, AuditRecord, after="99") == whole[:PER_PAGE]
    assert listed(admin_client, AuditRecord, before="99") == whole[:PER_PAGE]
    assert listed(admin_client, AuditRecord, before="0") == whole[-PER_PAGE:]
    assert listed(admin_client, AuditRecord, before=str(whole[3])) == whole[:PER_PAGE]


@pytest.mark.parametrize(
    ("model", "query", "key"),
    [
        (AuditRecord, {}, "9" * 30),
        (AuditRecord, {}, "-" + "9" * 30),
        (Account, {}, "\0,m2"),
        (Account, {}, ","),
        (Account, {}, "😀,𠮷"),
        (Account, {}, "\ufffd,%"),
        (Account, {}, "x" * 5_000 + ",m2"),
        (Account, {}, "'\" OR 1,m2"),
        (OutboxEntry, {"status": "posted"}, "1000-01-01 00_3A00_3A00,7"),
        (OutboxEntry, {"status": "posted"}, "9999-12-31 23_3A59_3A59.999999," + "9" * 40),
        (OutboxEntry, {"status": "posted"}, "2026-01-01,7"),
        (JobRun, {"job": "jobA", "status": "ok"}, f"{2**63},7"),
    ],
)
def test_any_value_that_could_be_is_gone_on_from(admin_client, filled, model, query, key):
    for way in ("after", "before"):
        for order in ({}, {"o": "0"}, {"o": "1"}):
            assert listed(admin_client, model, **query, **order, **{way: key})


@pytest.mark.parametrize(
    ("model", "query", "key"),
    [
        (AuditRecord, {}, "x"),
        (AuditRecord, {}, "7,7"),
        (AuditRecord, {}, "1e3"),
        (AuditRecord, {}, "9" * 5_000),
        (AuditRecord, {}, "' OR 1=1"),
        (Account, {}, "stock_3AOAK"),
        (Account, {}, "a,b,c"),
        (OutboxEntry, {"status": "posted"}, "7"),
        (OutboxEntry, {"status": "posted"}, "yesterday,7"),
        (OutboxEntry, {"status": "posted"}, "0001-01-01 00_3A00_3A00,7"),
        (OutboxEntry, {"status": "posted"}, ",7"),
        (OutboxEntry, {"status": "posted"}, "2026-02-30 00_3A00_3A00,7"),
        (OutboxEntry, {"status": "posted"}, "2026-01-01T00_3A00_3A00Z,7"),
        (OutboxEntry, {"status": "posted"}, "0001-01-01 00_3A00_3A00_2B23_3A59,7"),
        (OutboxEntry, {"status": "posted"}, "2026-W01-1,7"),
        (JobRun, {"job": "jobA", "status": "ok"}, "x,7"),
    ],
)
def test_what_is_no_key_of_the_list_is_refused(admin_client, filled, model, query, key):
    for way in ("after", "before"):
        response = admin_client.get(list_url(model, **query, **{way: key}))
        assert (response.status_code, response.headers["Location"]) == (302, list_url(model, e="1"))
        again = admin_client.get(list_url(model, **query, **{way: key}, e="1"))
        assert again.status_code == 200


def test_page_numbers_of_old_lead_to_the_first_page(admin_client, filled):
    assert listed(admin_client, AuditRecord, p="3") == listed(admin_client, AuditRecord)


def test_all_are_shown_where_they_are_few(admin_client, filled, monkeypatch):
    whole = list(AuditRecord.objects.order_by("-id").values_list("pk", flat=True))
    url, shown = follow(admin_client, list_url(AuditRecord), "Next", "Show all")
    assert shown == whole
    assert ways_of(admin_client.get(url)) == {}
    monkeypatch.setattr(ReadOnlyAdmin, "list_max_show_all", ROWS - 1)
    assert listed(admin_client, AuditRecord, all="") == whole[:PER_PAGE]
    assert "Show all" not in ways_of(admin_client.get(list_url(AuditRecord)))


def test_times_of_one_millisecond_are_told_apart(admin_client, small_pages):
    """SQLite has three decimals of a time it made itself, six of one that Python made."""
    entries = store((f"k{n}", "lot:a", into("OAK", "1")) for n in range(24))
    moments = [
        datetime(2026, 1, 1, 0, 0, second, microsecond, UTC)
        for second in (0, 1)
        for microsecond in (0, 500_000, 500_400, 501_000)
    ]
    for n, entry in enumerate(entries):
        OutboxEntry.objects.filter(pk=entry.pk).update(created_at=moments[n % len(moments)])
    if connection.vendor == "sqlite":
        short = Sql("STRFTIME('%Y-%m-%d %H:%M:%f', created_at)")
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE ledger_outboxentry SET created_at = {short} WHERE id % 2", None)
    for order in ({}, {"o": "1"}):
        url = list_url(OutboxEntry, status="pending", **order)
        ahead = [pk for page in walk(admin_client, url, "Next") for pk in page]
        assert ahead == listed(admin_client, OutboxEntry, status="pending", all="", **order)
        assert len(ahead) == len(set(ahead)) == len(entries)


def test_action_on_a_later_page_leads_back_to_it(admin_client, filled):
    url, shown = follow(admin_client, list_url(Account), "Next")
    chosen = {"action": "close", "_selected_action": shown[2], "index": "0"}
    assert admin_client.post(url, chosen).status_code == 200
    done = admin_client.post(url, chosen | {"confirmed": "1", "reason": "stocktaking"})
    assert (done.status_code, done.headers["Location"]) == (302, url)
    assert Account.objects.get(pk=shown[2]).closed_at


@pytest.mark.parametrize(
    ("language", "ways"),
    [
        ("en", ["First", "Previous", "Next", "Last", "Show all"]),
        ("zh-hans", ["第一页", "上一页", "下一页", "最后一页", "全部显示"]),
    ],
)
def test_links_are_translated(admin_client, filled, language, ways):
    url, _rows = follow(admin_client, list_url(AuditRecord), "Next")
    page = admin_client.get(url, headers={"Accept-Language": language})
    assert list(ways_of(page)) == ways
