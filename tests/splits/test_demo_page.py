"""The demo's page: there with DEMO, not there without; it reads, and reads little."""

import re
import sys
from importlib import reload

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import clear_url_caches

from ledger import accounts, outbox
from recovery import schedules
from recovery.runner import run_job
from splits.demo import boards, scenes, urls
from splits.demo.scenes import CLOSED_SKU, Role, number_of
from splits.models import SplitOrder
from tests.factories import hang

pytestmark = pytest.mark.django_db(transaction=True)

URL_MODULES = ("splits.demo.urls", "settings.urls")


def reload_urls():
    for name in URL_MODULES:
        if name in sys.modules:
            reload(sys.modules[name])
    clear_url_caches()


@pytest.fixture
def demo_on(settings):
    """The site as the demo's web process serves it."""
    settings.DEMO = True
    settings.SPLIT_COMPLETION_WEBHOOK = "http://127.0.0.1:1/split-completed"
    reload_urls()
    yield
    settings.DEMO = False
    reload_urls()


def deliver_story_1():
    """Post one board of each SKU, then let the closed account's story begin."""
    boards.deliver({"FIRST": CLOSED_SKU})
    run_job(outbox.JOB)
    accounts.close(scenes.CLOSED_ACCOUNT, scenes.CLOSED_UNIT, actor="demo", reason="test")
    boards.deliver({number_of(1, Role.CLOSED): CLOSED_SKU})
    run_job(outbox.JOB)


def test_page_does_not_exist_without_the_setting(client):
    assert urls.urlpatterns == []
    assert client.get("/demo/").status_code == 404
    assert client.get("/demo/live/").status_code == 404
    assert client.get("/").url == "/admin/"


def test_site_leads_to_the_page_with_the_setting(client, demo_on):
    assert client.get("/").url == "/demo/"
    page = client.get("/demo/")
    assert page.status_code == 200
    assert "demo-password" in page.text
    assert page.text.count("not played yet") == 3
    assert "no-store" in page["Cache-Control"]


def test_page_loads_nothing_from_elsewhere(client, demo_on):
    html = client.get("/demo/").text
    assert "//" not in html.replace("http://www.w3.org", "")
    assert "/static/splits/demo.css" in html


def test_page_tells_a_story_as_far_as_it_went(client, demo_on):
    deliver_story_1()
    html = client.get("/demo/live/").text
    assert "<html" not in html
    assert 'class="under_way"' in html
    assert "account_closed. Attempt 1 of 4, the next one in 2 s" in html
    order = SplitOrder.objects.get(number="DEMO-1-CLOSED")
    assert f"/admin/splits/splitorder/{order.pk}/change/" in html


def test_page_shows_what_hangs(client, demo_on):
    boards.deliver({number_of(1, Role.KILLED, 1): "SHEET-10x10"})
    hang(SplitOrder.objects.get(), age_s=9)
    html = client.get("/demo/live/").text
    assert "hangs in progress: process 1 is gone" in html
    assert "after 13 s it counts as stuck" in html


def test_page_shows_jobs_with_their_heartbeat_and_who_ran_them(client, demo_on):
    schedules.ensure_rows()
    assert "no heartbeat yet" in client.get("/demo/live/").text
    run_job(outbox.JOB)
    html = client.get("/demo/live/").text
    assert re.search(r"heartbeat \d{1,2} s ago", html)
    assert "Worker processes" in html


@pytest.mark.parametrize("path", ["/demo/", "/demo/live/"])
def test_page_only_reads_and_reads_no_more_with_more_rows(client, demo_on, path):
    deliver_story_1()
    with CaptureQueriesContext(connection, ) as few:  # fmt: skip
        client.get(path)
    boards.deliver({f"LIVE-{nth}": "SHEET-10x10" for nth in range(30)})
    run_job(outbox.JOB)
    with CaptureQueriesContext(connection) as many:
        client.get(path)
    statements = [query["sql"] for query in many.captured_queries]
    assert all(sql.startswith("SELECT") for sql in statements), statements
    assert len(few) == len(many) <= 20


@pytest.mark.parametrize("path", ["/demo/", "/demo/live/"])
def test_page_can_only_be_read(client, demo_on, path):
    assert client.post(path).status_code == 405
    assert client.head(path).status_code == 200


def test_page_speaks_the_readers_language(client, demo_on):
    assert '<html lang="en">' in client.get("/demo/").text
    page = client.get("/demo/", headers={"accept-language": "zh-hans"})
    assert '<html lang="zh-hans">' in page.text
