"""The demo as a newcomer meets it, in a browser."""

import pytest

from tests.browser.screenshots import log_in
from tests.splits.demos import Demo

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.sqlite, pytest.mark.timeout(400)]


@pytest.fixture
def demo(browser, tmp_path):
    """Return a demo whose stories are told."""
    running = Demo(tmp_path / "var")
    try:
        running.says("Ctrl-C stops it.")
        yield running
        assert running.end() == 0
    finally:
        running.clean_up()


def test_newcomer_finds_orders_ledger_dead_entry_and_recovered_order(demo, page):
    address = f"http://127.0.0.1:{demo.port}"
    page.goto(address)
    assert page.url == f"{address}/demo/"
    assert page.locator("article.played").count() == 3
    log_in(page.context, address, (demo.var / "demo-password").read_text())

    page.goto(f"{address}/demo/")
    page.click("a:text-is('The dead letter queue')")
    page.click("#result_list tbody tr th a")
    assert "account_closed" in page.inner_text("#content")
    assert "is closed" in page.inner_text("#content")

    page.goto(f"{address}/demo/")
    page.click('article:nth-of-type(3) a[href*="/splitorder/"]')
    story = page.inner_text("#content")
    assert "split-order-finalize-stuck-recovered" in story
    assert "system:recoverFinalizeStuck" in story
    page.click("text=split-order-finalize-stuck-recovered")
    assert "/auditrecord/" in page.url
    assert "epoch" in page.inner_text("#content")

    page.goto(f"{address}/admin/ledger/transaction/")
    assert page.locator("#result_list tbody tr").count() == 100
