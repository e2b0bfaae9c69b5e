"""The console's search over all tiers of the audit trail, and its archives, seals and copies."""

import copy
import re
import uuid
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.http import urlencode

from recovery import search
from recovery.admin import trail
from recovery.admin.tables import NOTHING
from recovery.clock import db_now
from recovery.models import (
    ArchiveStatus,
    AuditArchive,
    AuditRecord,
    AuditSeal,
    RestoredRecord,
)
from recovery.roles import OPERATOR, VIEWER
from recovery.search import Search, leaf
from recovery.trail import copies, reading
from tests.adminpages import list_url, listed, page_url, staff, statements, text_of
from tests.recovery.trail.records import archived, path_of, sealed, written
from tests.roles import grant_all, logged_in

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _folders(settings, tmp_path, no_redis):
    """Keep both tiers in folders of the test, and have time to read them."""
    stores = copy.deepcopy(settings.STORAGES)
    for alias in ("audit_archive", "audit_cold"):
        stores[alias]["OPTIONS"]["location"] = str(tmp_path / alias)
    settings.STORAGES = stores
    with pytest.MonkeyPatch.context() as patch:  # of its own: some tests undo all of theirs
        patch.setattr(trail, "WAIT_S", 600)
        yield


def url(**query):
    return f"/admin/audit/?{urlencode(query)}"


def shown(client, **query):
    """Return the ids of the records that a page of the search shows, and its page."""
    page = client.get(url(**query))
    assert page.status_code == 200
    return [it.pk for it in page.context["found"].records], page


def through(client, address):
    """Return the ids of all pages, from ``address`` on by the link to older records."""
    ids = []
    while address:
        page = client.get(address)
        ids += [it.pk for it in page.context["found"].records]
        address = page.context["older"]
        assert len(ids) < 1_000
    return ids


@pytest.fixture
def opened(monkeypatch):
    """Return the names of the archives whose files are opened."""
    names = []
    open_one = reading.opened
    monkeypatch.setattr(reading, "opened", lambda it: names.append(it.name) or open_one(it))
    return names


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(trail, "PAGE_RECORDS", 3)


# What is found


def test_records_of_all_tiers_are_shown_with_where_they_are(admin_client):
    (old,), (young,) = archived(actor="bob"), written(actor="bob")
    ids, page = shown(admin_client, actor="bob")
    assert ids == [young, old]
    archive, text = AuditArchive.objects.get(), page.content.decode()
    assert f'<a href="{page_url(archive)}">' in text
    assert archive.name in text
    assert f"/admin/recovery/auditrecord/{young}/change/" in text


@pytest.mark.parametrize(
    "query",
    [
        {"actor": "bob"},
        {"action": "job-resumed"},
        {"target": "job/y"},
        {"target": "y"},
        {"run": "12345678-1234-4234-8234-123456789abc"},
        {"text": "Needle", "since": "200d"},
        {"since": "101d", "until": "99d", "actor": "bob"},
    ],
)
def test_record_in_an_archive_is_found_by_each_field(admin_client, query):
    archived(2)
    (pk,) = archived(
        actor="bob",
        action="job-resumed",
        target_id="y",
        run_id=uuid.UUID("12345678-1234-4234-8234-123456789abc"),
        reason="a needle",
    )
    assert shown(admin_client, **query)[0] == [pk]


def test_form_keeps_what_was_asked_for(admin_client):
    page = admin_client.get(url(actor="bob", since="7d", text="x")).content.decode()
    assert 'value="bob"' in page
    assert 'value="7d"' in page


def test_files_that_cannot_have_it_are_not_opened(admin_client, opened):
    for days in range(100, 130):
        archived(days_ago=days)
    archived(days_ago=131, actor="bob")
    wanted = AuditArchive.objects.get(day=(db_now() - timedelta(days=131)).date())
    admin_client.get(url(actor="bob"))
    assert opened == [wanted.name]
    opened.clear()
    admin_client.get(url(since="132d", until="130.5d"))
    assert opened == [wanted.name]


def test_page_that_the_table_fills_opens_no_file(admin_client, small_pages, opened):
    archived(2)
    young = written(4)
    assert shown(admin_client)[0] == young[:0:-1]
    assert opened == []


# Page after page


@pytest.mark.parametrize("query", [{}, {"actor": "cli:ann"}, {"target": "x"}, {"since": "400d"}])
def test_older_pages_skip_nothing_and_show_nothing_twice(admin_client, small_pages, query):
    for days in (300, 200, 100):
        archived(4, days_ago=days)
    written(5)
    ids = through(admin_client, url(**query))
    asked = {"since": db_now() - timedelta(days=400)} if "since" in query else query
    assert ids == [it.pk for it in search.find(Search(**asked))]
    assert len(ids) == len(set(ids)) >= 17


@pytest.mark.parametrize("in_files", [True, False])
def test_records_of_one_moment_are_told_apart(admin_client, small_pages, in_files):
    at = db_now() - timedelta(days=100)
    AuditRecord.objects.bulk_create(
        AuditRecord(actor="a", action="b", target_type="job", target_id="x", at=at)
        for _ in range(8)
    )
    if in_files:
        archived(1, days_ago=90)
    assert AuditRecord.objects.filter(at=at).exists() is not in_files
    ids = through(admin_client, url(since="101d", until="99d"))
    assert len(ids) == len(set(ids)) == 8
    assert ids == sorted(ids, reverse=True)


def test_records_that_move_between_two_pages_are_shown_once(admin_client, small_pages):
    old = sealed(6, days_ago=100)
    page = admin_client.get(url(actor="cli:ann"))
    assert [it.pk for it in page.context["found"].records] == old[:2:-1]
    archived(1, actor="else")
    assert not AuditRecord.objects.filter(pk__in=old).exists()
    assert through(admin_client, page.context["older"]) == old[2::-1]


def test_record_in_both_is_shown_once(admin_client):
    (pk,) = archived()
    archive = AuditArchive.objects.get()
    AuditArchive.objects.update(status=ArchiveStatus.WRITTEN)
    record = search.archived_record(pk)
    AuditRecord(**{n: getattr(record, n) for n in ("id", "at", *AuditRecord.CONTENT)}).save()
    assert shown(admin_client, actor="cli:ann")[0] == [pk]
    assert archive.name not in admin_client.get(url(actor="cli:ann")).content.decode()


def test_older_pages_keep_the_time_that_an_age_stood_for(admin_client, small_pages):
    written(4)
    older = shown(admin_client, since="7d")[1].context["older"]
    since = datetime.fromisoformat(re.search(r"since=([^&]*)", _plain(older))[1])
    assert abs(since - (db_now() - timedelta(days=7))) < timedelta(hours=1)


def _plain(address):
    return address.replace("+", " ").replace("%3A", ":").replace("%2B", "+")


@pytest.mark.parametrize("below", ["x", "1_2_3", "-5", "9" * 40, f"{'9' * 18}_1", "1_1", "٣"])
def test_place_that_is_none_is_refused_in_the_form(admin_client, below):
    page = admin_client.get(url(below=below))
    assert "names no place to go on from" in page.content.decode()
    assert page.context["found"] is None


def test_place_at_the_end_of_the_calendar_is_refused_in_the_form(admin_client):
    page = admin_client.get(url(since="7d", below="253402300799999999_1"))
    assert "names no place to go on from" in page.content.decode()


def test_place_of_the_other_order_is_refused(admin_client):
    assert admin_client.get(url(below="5", since="7d")).context["found"] is None
    assert admin_client.get(url(below="5")).context["found"] is not None


# What cannot be asked for


def test_text_alone_is_refused_with_advice(admin_client, opened):
    archived()
    page = admin_client.get(url(text="x"))
    assert "A text alone would read every record" in page.content.decode()
    assert (page.context["found"], opened) == (None, [])
    assert admin_client.get(url(text="x", since="200d")).context["found"] is not None


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({"since": "yesterday"}, "Give a time such as"),
        ({"until": "2026-13-01"}, "Give a time such as"),
        ({"since": "9999999999w"}, "Give a time such as"),
        ({"until": "0001-01-01T00:00+23:00"}, "Give a time such as"),
        ({"since": "1d", "until": "2d"}, "This is not after the beginning."),
        ({"run": "7"}, "Enter a valid UUID."),
        ({"actor": "x" * 201}, "at most 200 characters"),
        ({"actor": "a\0b"}, "Null characters are not allowed."),
    ],
)
def test_what_cannot_be_read_is_said_in_the_form(admin_client, query, text):
    page = admin_client.get(url(**query))
    assert page.status_code == 200
    assert text in page.content.decode()
    assert page.context["found"] is None


@pytest.mark.parametrize(
    ("zone", "query"),
    [
        ("Asia/Shanghai", {"until": "9999-12-31T23:59Z"}),
        ("America/New_York", {"since": "0001-01-01T00:00Z"}),
    ],
)
def test_time_that_the_site_has_no_name_for_is_said_in_the_form(
    admin_client, settings, zone, query
):
    settings.TIME_ZONE = zone
    assert "Give a time such as" in admin_client.get(url(**query)).content.decode()


def test_times_without_a_zone_are_the_sites(admin_client, settings):
    settings.TIME_ZONE = "Asia/Shanghai"
    (pk,) = written()
    at = AuditRecord.objects.get(pk=pk).at + timedelta(hours=8)
    day = f"{at:%Y-%m-%d %H:%M}"
    assert shown(admin_client, since=day, actor="cli:ann")[0] == [pk]
    assert shown(admin_client, until=day, actor="cli:ann")[0] == []


# What there was no time for, and what cannot be read


def test_files_without_time_are_counted_and_can_be_gone_on_with(admin_client, monkeypatch):
    old = [pk for days in (300, 200, 100) for pk in archived(days_ago=days)]
    young = written(2)
    monkeypatch.setattr(trail, "WAIT_S", -1)
    ids, page = shown(admin_client, actor="cli:ann")
    assert ids == young[::-1]
    assert "3 files were not looked at within" in page.content.decode()
    assert "Go on looking" in page.content.decode()
    monkeypatch.undo()
    assert through(admin_client, page.context["older"]) == old[::-1]


def test_nothing_is_shown_from_below_what_was_not_looked_at(admin_client, monkeypatch):
    """A record of the table that is older than a file waits for that file."""
    (low,) = written(actor="bob")
    (high,) = archived(actor="bob")
    monkeypatch.setattr(trail, "WAIT_S", -1)
    ids, page = shown(admin_client, actor="bob")
    assert ids == []
    assert "Nothing matches in what was looked at." in page.content.decode()
    assert "1 file was not looked at" in page.content.decode()
    monkeypatch.undo()
    assert through(admin_client, page.context["older"]) == [high, low]


class Clock:
    """Time that ends after so many looks at it."""

    def __init__(self, looks):
        self.looks = looks

    def monotonic(self):
        self.looks -= 1
        return 0.0 if self.looks >= 0 else 2.0


@pytest.mark.parametrize("by", ["id", "time"])
@pytest.mark.parametrize("looks", range(1, 8))
def test_wherever_the_time_ends_nothing_is_lost(monkeypatch, looks, by):
    ids = [pk for days in (300, 200, 100) for pk in archived(2, days_ago=days, reason="needle")]
    ids += written(5, reason="needle")
    wanted = {"since": db_now() - timedelta(days=400)} if by == "time" else {"actor": "cli:ann"}
    found, below = [], None
    for _ in range(60):
        clock = Clock(looks)
        monkeypatch.setattr(search, "time", clock)
        monkeypatch.setattr(reading, "time", clock)
        one = leaf(Search(text="needle", below=below, **wanted), 4, until_s=1.0)
        assert one.is_late or len(one.records) == 4 or one.below is None
        found += [it.pk for it in one.records]
        below = one.below
        if below is None:
            break
    assert found == ids[::-1]


def test_time_bounds_the_search_for_what_the_database_takes_for_the_same(monkeypatch):
    written(3)
    rows = AuditRecord.objects.order_by("-id")
    monkeypatch.setattr(search, "_merged", lambda *_given: iter(rows))
    one = leaf(Search(actor="cli:Ann"), 4, until_s=0)
    assert (one.records, one.is_late, one.below) == ([], True, (rows[0].pk,))


def test_time_bounds_the_search_for_a_text_in_the_table(admin_client, monkeypatch):
    written(3, reason="hay")
    monkeypatch.setattr(trail, "WAIT_S", -1)
    page = admin_client.get(url(text="needle", actor="cli:ann")).content.decode()
    assert "Not all records were looked at within" in page


def test_file_that_cannot_be_read_is_named(admin_client):
    (gone,), (there,) = archived(days_ago=200), archived(days_ago=100)
    broken = AuditArchive.objects.order_by("day")[0]
    path_of(broken).unlink()
    ids, page = shown(admin_client, actor="cli:ann")
    assert ids == [there]
    text = page.content.decode()
    assert "Not all archives could be read" in text
    assert broken.name in text
    page = admin_client.get(f"/admin/recovery/auditrecord/{gone}/change/")
    assert page.status_code == 503
    assert broken.name in page.content.decode()


# A record's page


def test_page_of_an_archived_record_shows_all_of_it(admin_client):
    (pk,) = archived(actor="bob", reason="because", evidence={"seen": "木"})
    page = text_of(admin_client, f"/admin/recovery/auditrecord/{pk}/change/")
    seal = AuditSeal.objects.of_record(pk)
    for text in ("bob", "job-paused", "job/x", "because", "木", AuditArchive.objects.get().name):
        assert text in page
    assert (f"seal {seal.number}" in page, seal.hash in page) == (True, True)


def test_page_of_an_archived_record_opens_its_file_alone(admin_client, opened):
    for days in (300, 200, 100):
        archived(days_ago=days)
    first = AuditArchive.objects.order_by("day").first()
    admin_client.get(f"/admin/recovery/auditrecord/{first.first_id}/change/")
    assert opened == [first.name]


@pytest.mark.parametrize("pk", ["7", "0", "x", "-1", "9" * 30, "٣"])
def test_record_that_never_was_is_not_found(admin_client, pk):
    archived(3)
    page = admin_client.get(f"/admin/recovery/auditrecord/{pk}/change/")
    assert (page.status_code, page.headers["Location"]) == (302, "/admin/")


def test_record_says_that_it_waits_for_its_seal(admin_client):
    (pk,) = written()
    record = AuditRecord.objects.get(pk=pk)
    page = text_of(admin_client, page_url(record))
    assert "It waits for the next seal." in page
    assert "table" in page


def test_record_that_seals_have_passed_over_says_so(admin_client):
    low, high = sealed(2)
    AuditSeal.objects.get().spans.all().delete()
    AuditSeal.objects.get().spans.create(first_id=high, last_id=high)
    page = text_of(admin_client, page_url(AuditRecord.objects.get(pk=low)))
    assert "It is in no seal, though later ones are" in page


# Secrets


SECRET = {"payload": {"price": "s3cret-price"}, "status": "dead"}


@pytest.fixture
def _roles():
    grant_all()


@pytest.mark.usefixtures("_roles")
@pytest.mark.parametrize("in_file", [True, False])
def test_payloads_are_shown_to_those_who_may_see_them(in_file):
    (pk,) = (archived if in_file else sealed)(before=SECRET)
    address = f"/admin/recovery/auditrecord/{pk}/change/"
    assert "s3cret-price" in text_of(logged_in(OPERATOR), address)
    viewer = text_of(logged_in(VIEWER), address)
    assert "s3cret-price" not in viewer
    assert "You need the permission ledger.view_payload" in viewer


@pytest.mark.usefixtures("_roles")
@pytest.mark.parametrize("in_file", [True, False])
def test_text_is_not_looked_for_in_what_its_reader_may_not_see(in_file):
    (pk,) = (archived if in_file else sealed)(before=SECRET, actor="bob")
    for text in ("s3cret-price", '"price"', "view_payload"):
        assert shown(logged_in(VIEWER), text=text, actor="bob")[0] == [], text
    assert shown(logged_in(OPERATOR), text="s3cret-price", actor="bob")[0] == [pk]
    assert shown(logged_in(VIEWER), text="dead", actor="bob")[0] == [pk]


@pytest.mark.usefixtures("_roles")
def test_copies_are_masked_as_records_are():
    (pk,) = archived(before=SECRET)
    copies.bring_back(Search(actor="cli:ann"), actor="ann", reason="")
    address = page_url(RestoredRecord.objects.get(pk=pk))
    assert "s3cret-price" in text_of(logged_in(OPERATOR), address)
    assert "s3cret-price" not in text_of(logged_in(VIEWER), address)


def test_what_people_wrote_is_escaped(admin_client):
    evil = "<script>alert(1)</script>"
    (pk,) = archived(actor=evil, reason=evil, target_id=evil, evidence={"x": evil})
    for address in (url(actor=evil), f"/admin/recovery/auditrecord/{pk}/change/"):
        page = admin_client.get(address).content.decode()
        assert evil not in page
        assert evil in unescape(page)
    assert evil not in admin_client.get(url(text=evil, below=evil)).content.decode()


# Who may


def test_search_takes_the_permission_to_see_records():
    assert staff("none").get("/admin/audit/").status_code == 403
    assert staff("other", "view_auditarchive").get("/admin/audit/").status_code == 403
    assert staff("reader", "view_auditrecord").get("/admin/audit/").status_code == 200
    assert Client().get("/admin/audit/").status_code == 302


def test_archives_and_seals_are_linked_for_those_who_may_see_them():
    (pk,) = archived()
    archive, reader = AuditArchive.objects.get(), staff("reader", "view_auditrecord")
    for address in (url(actor="cli:ann"), f"/admin/recovery/auditrecord/{pk}/change/"):
        page = reader.get(address).content.decode()
        assert archive.name in page
        assert page_url(archive) not in page
        assert "/admin/recovery/auditseal/" not in page
    keeper = staff("keeper", "view_auditarchive", "view_auditseal")
    page = keeper.get(page_url(archive))
    assert page.status_code == 200
    assert "/admin/audit/" not in page.content.decode()


def test_nobody_without_the_permission_makes_the_console_open_a_file(opened):
    (pk,) = archived()
    assert staff("none").get(f"/admin/recovery/auditrecord/{pk}/change/").status_code == 403
    assert opened == []


@pytest.mark.parametrize("model", [AuditArchive, AuditSeal, RestoredRecord])
def test_nobody_changes_anything(admin_client, model):
    archived()
    copies.bring_back(Search(actor="cli:ann"), actor="ann", reason="")
    row = model.objects.order_by("pk").first()
    opts = model._meta
    assert admin_client.post(page_url(row), {"name": "x"}).status_code == 403
    delete = reverse(f"admin:{opts.app_label}_{opts.model_name}_delete", args=[row.pk])
    assert admin_client.post(delete, {"post": "yes"}).status_code == 403
    assert admin_client.get(list_url(model).rstrip("/") + "/add/").status_code == 403


# Archives, seals, copies


def test_archives_are_listed_by_day_and_filtered(admin_client):
    for days in (100, 300, 200):
        archived(days_ago=days)
    by_day = list(AuditArchive.objects.order_by("-day").values_list("pk", flat=True))
    assert listed(admin_client, AuditArchive) == by_day
    assert listed(admin_client, AuditArchive, o="0") == by_day[::-1]
    AuditArchive.objects.filter(pk=by_day[1]).update(tier="cold")
    AuditArchive.objects.filter(pk=by_day[2]).update(status="written")
    assert listed(admin_client, AuditArchive, tier="cold") == by_day[1:2]
    assert listed(admin_client, AuditArchive, status="written") == by_day[2:]
    assert listed(admin_client, AuditArchive, tier="warm", status="done") == by_day[:1]
    name = AuditArchive.objects.get(pk=by_day[1]).name
    assert listed(admin_client, AuditArchive, q=name) == by_day[1:2]


def test_archives_page_has_all_of_the_manifest(admin_client):
    archived(3, days_ago=100)
    archive = AuditArchive.objects.get()
    page = text_of(admin_client, page_url(archive))
    for text in (archive.name, archive.sha256, archive.seal_hash, str(archive.day), "at hand"):
        assert text in page
    assert f"{archive.first_id} {NOTHING} {archive.last_id}" in page
    assert f"{archive.last_seal}: 1 seal" in page


def test_archives_page_leads_to_the_search_of_its_day(admin_client, settings):
    settings.TIME_ZONE = "Asia/Shanghai"
    at = datetime.combine((db_now() - timedelta(days=100)).date(), datetime.min.time(), UTC)
    ids = written(1) + [
        AuditRecord.objects.create(
            actor="a", action="b", target_type="job", target_id="x", at=at + timedelta(seconds=it)
        ).pk
        for it in (-1, 0, 86_399)
    ]
    archived(days_ago=95)
    archive = AuditArchive.objects.get(day=at.date())
    page = admin_client.get(page_url(archive)).content.decode()
    address = unescape(re.search(r'href="(/admin/audit/\?[^"]*)"', page)[1])
    assert through(admin_client, address) == ids[:1:-1]


def test_archive_is_found_from_the_record_of_it(admin_client):
    archived()
    record = AuditRecord.objects.get(action="audit-archived")
    page = admin_client.get(page_url(record)).content.decode()
    assert f'href="{page_url(AuditArchive.objects.get())}"' in page


def test_what_pages_do_not_show_is_never_read(admin_client):
    (pk,) = archived()
    copies.bring_back(Search(actor="cli:ann"), actor="ann", reason="")
    archive, seal = AuditArchive.objects.get(), AuditSeal.objects.of_record(pk)
    pages = [list_url(it) for it in (AuditArchive, AuditSeal, RestoredRecord)]
    pages += [page_url(it) for it in (archive, seal, RestoredRecord.objects.get())]
    pages += [list_url(AuditSeal, archive=archive.pk), f"/admin/recovery/auditrecord/{pk}/change/"]
    for page in pages:
        read = [it for it in statements(admin_client, page) if re.search(r"\bterms\b|marks", it)]
        assert read == [], page


def test_seals_are_listed_newest_first_and_by_archive(admin_client):
    for days in (100, 101):
        sealed(days_ago=days)
    archived(days_ago=102)
    written()
    sealed()
    numbers = list(AuditSeal.objects.order_by("-number").values_list("pk", flat=True))
    assert listed(admin_client, AuditSeal) == numbers
    archive = AuditArchive.objects.order_by("day").last()
    assert listed(admin_client, AuditSeal, archive=archive.pk) == [archive.last_seal]
    assert admin_client.get(list_url(AuditSeal, archive="x")).status_code == 302
    assert listed(admin_client, AuditSeal, q=numbers[0]) == numbers[:1]


def test_seals_page_has_its_hashes_and_leads_to_the_one_before(admin_client):
    sealed(2)
    sealed(2)
    before, seal = AuditSeal.objects.order_by("number")
    page = admin_client.get(page_url(seal)).content.decode()
    for text in (seal.hash, seal.digest, seal.mac, seal.key, before.hash):
        assert text in page
    assert f'href="{page_url(before)}"' in page
    assert f'data-copy="{seal.number}:{seal.hash}"' in page


def test_copies_say_what_they_are(admin_client):
    (pk,) = archived(actor="bob")
    copies.bring_back(Search(actor="bob"), actor="ann", reason="")
    assert listed(admin_client, RestoredRecord, q="bob") == [pk]
    for address in (list_url(RestoredRecord), page_url(RestoredRecord.objects.get())):
        page = text_of(admin_client, address)
        assert "audit restore --away" in page
        assert AuditArchive.objects.get().name in page


# From the list of records


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({}, {}),
        ({"q": "split-order/1042"}, {"target": "split-order/1042"}),
        ({"q": "1042"}, {"target": "1042"}),
        ({"q": "cli:ann"}, {"actor": "cli:ann"}),
        ({"q": "admin"}, {"actor": "admin"}),
        ({"q": "job-paused"}, {"action": "job-paused"}),
        ({"q": "1" * 32}, {"run": str(uuid.UUID("1" * 32))}),
        ({"action": "job-resumed", "q": "x/y"}, {"target": "x/y", "action": "job-resumed"}),
    ],
)
def test_list_leads_to_the_search_of_the_same(admin_client, query, wanted):
    page = admin_client.get(list_url(AuditRecord, **query)).content.decode()
    assert f'<a href="{trail.search_url(**wanted)}">' in unescape(page)


# How much it takes


def test_search_takes_no_more_statements_for_fifty_records_than_for_one(admin_client):
    written()
    admin_client.get(url())
    few = len(statements(admin_client, url(actor="cli:ann")))
    written(100, reason="x" * 500)
    assert len(statements(admin_client, url(actor="cli:ann"))) <= few


def test_search_takes_one_statement_for_each_file_it_opens(admin_client):
    archived(20, days_ago=100)
    few = len(statements(admin_client, url(actor="cli:ann")))
    archived(20, days_ago=101)
    assert len(statements(admin_client, url(actor="cli:ann"))) == few + 1


@pytest.mark.parametrize("model", [AuditArchive, AuditSeal, RestoredRecord])
def test_lists_take_as_many_statements_for_one_row_as_for_ten(admin_client, model):
    archived(days_ago=100)
    copies.bring_back(Search(actor="cli:ann"), actor="ann", reason="")
    few = len(statements(admin_client, list_url(model)))
    for days in range(101, 110):
        archived(days_ago=days)
    copies.bring_back(Search(actor="cli:ann"), actor="ann", reason="")
    assert len(statements(admin_client, list_url(model))) == few


# In Chinese


def test_pages_speak_chinese(admin_client, monkeypatch):
    (pk,) = archived()
    monkeypatch.setattr(trail, "WAIT_S", -1)
    chinese = {"headers": {"Accept-Language": "zh-hans"}}
    page = admin_client.get(url(actor="cli:ann"), **chinese).content.decode()
    assert "搜索全部审计记录" in page
    assert "个文件" in page
    archive = AuditArchive.objects.get()
    assert "归档" in admin_client.get(page_url(archive), **chinese).content.decode()
    record = admin_client.get(f"/admin/recovery/auditrecord/{pk}/change/", **chinese)
    assert "封条" in record.content.decode()


def test_seals_have_numbers_of_their_own_in_chinese(admin_client):
    sealed()
    chinese = {"headers": {"Accept-Language": "zh-hans"}}
    page = admin_client.get(page_url(AuditSeal.objects.get()), **chinese).content.decode()
    assert "序号" in page
    assert "单号<" not in page  # what orders have
    assert f"封条 {AuditSeal.objects.get().number}" in page
