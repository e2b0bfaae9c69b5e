"""The console in a browser, as people repair things with it, beside a live cluster."""

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.sessions.models import Session
from playwright.sync_api import expect

from ledger.models import Account, EntryStatus, OutboxEntry
from recovery import pauses
from recovery.clock import db_now
from recovery.models import AuditArchive, Plan, PlanStatus
from recovery.roles import ADMINISTRATOR, OPERATOR, VIEWER
from splits.models import OrderStatus
from tests.browser.conftest import PATIENCE_MS
from tests.browser.operators import (
    ACCOUNT,
    HASTE,
    STUCK_JOB,
    dead_entries,
    enter,
    log_in,
    member,
    overflow,
    stuck_order,
    tab_to,
)
from tests.factories import SplitOrderFactory
from tests.ledger.entries import balance
from tests.roles import grant_all
from tests.splits.state import assert_finalized_once
from tests.waiting import eventually
from tests.web import Web

pytestmark = pytest.mark.django_db(transaction=True)

NARROW = {"width": 390, "height": 844}
PLAN_PAGE = "**/recovery/plan/*/change/**"
REASON = "textarea[name=reason]"
GO = "button[name=go]"
MENU = "[role=button][aria-label=Menu]:visible"
SERIOUS = ("serious", "critical")
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture
def web(browser, manage):
    """Return a web server; the browser goes last."""
    grant_all()
    return Web(manage, **HASTE)


@pytest.fixture
def cluster(web, manage):
    """Return a running cluster."""
    return manage.start("qcluster", env=HASTE)


def confirm(page, reason):
    page.fill(REASON, reason)
    page.click(GO)
    page.wait_for_url(PLAN_PAGE)


def operate(page, label, reason):
    """Press a button of the page that asks for a reason, and give one."""
    page.click(f"#content .buttons button:text-is('{label}')")
    page.fill(REASON, reason)
    page.click(f"form.confirm button:text-is('{label}')")


def status_of_plan(page, status):
    expect(page.locator(f"#content [data-live=fields] .state-{status}")).to_be_visible()


def focused(page):
    return page.evaluate("document.activeElement.textContent.trim()")


# Repair


def test_operator_recovers_a_stuck_order_and_sees_it_finalized(web, manage, page):
    order = stuck_order(manage)
    manage.start("qcluster", env=HASTE)
    log_in(page, web.url, member(OPERATOR).username)
    concern = page.locator("[data-live=verdict] a", has_text="order is stuck")
    expect(concern).to_be_visible()
    concern.click()
    row = page.locator("#in_progress tr", has_text=order.number)
    expect(row.locator(".state-stuck")).to_be_visible()
    expect(row).to_contain_text("create outputs 3/5")

    row.locator(f"a[aria-label='Recover: {order.number}']").click()
    proof = page.locator("#preview tbody td:nth-child(3)")
    expect(proof).to_contain_text("no live transaction holds it")
    assert Plan.objects.count() == 0
    confirm(page, "its worker was killed")
    expect(page.locator("#main")).to_contain_text("runs: 1 row.")
    status_of_plan(page, "done")

    page.click(f"#content a:text-is('{order.number}')")
    expect(page.locator("#content .state-finalized").first).to_be_visible()
    timeline = page.locator(".belongings", has=page.locator("h2:text-is('Timeline')"))
    expect(timeline).to_contain_text("split-order-finalize-stuck-recovered")
    expect(timeline).to_contain_text("operator")
    expect(timeline).to_contain_text("its worker was killed")
    assert_finalized_once(order)


def test_canary_halts_while_the_cause_stands_and_goes_on_when_it_is_gone(web, cluster, page):
    entries = dead_entries(12)
    enter(page, web.url, ADMINISTRATOR)
    page.goto(f"{web.url}/admin/dlq/")
    expect(page.locator("#content")).to_contain_text("12 entries could not be posted")
    page.click(".belongings a[aria-label^='Redrive: ']")
    expect(page.locator("#preview")).to_contain_text("12 rows would be changed.")
    expect(page.locator("input[name=canary]")).to_be_checked()
    confirm(page, "it should be open by now")
    status_of_plan(page, "halted")
    note = page.locator("#content [data-live=fields]")
    expect(note).to_contain_text("account_closed")
    assert OutboxEntry.objects.filter(status=EntryStatus.DEAD).count() == len(entries)
    assert Plan.objects.get().status == PlanStatus.HALTED
    plan_page = page.url

    page.goto(f"{web.url}/admin/go/?q={ACCOUNT}")
    operate(page, "Reopen", "the stocktaking is over")
    expect(page.locator("#main")).to_contain_text("is open again")
    page.goto(plan_page)
    operate(page, "Resume", "the account is open")
    page.wait_for_url(PLAN_PAGE)
    status_of_plan(page, "done")
    assert balance(ACCOUNT) == 1 + 2 * len(entries)


def test_second_click_on_the_button_makes_no_second_plan(web, page):
    dead_entries(2)
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/actions/outbox.redrive/?all=1")
    page.fill(REASON, "twice")
    page.dblclick(GO)
    page.wait_for_url(PLAN_PAGE)
    assert Plan.objects.count() == 1


def test_going_back_and_sending_again_leads_to_the_plan_that_was_made(web, page):
    dead_entries(2)
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/actions/outbox.redrive/?all=1")
    confirm(page, "once")
    page.go_back()
    page.wait_for_url("**/actions/outbox.redrive/**")
    expect(page.locator("#preview")).to_contain_text("Nothing is left to do")
    expect(page.locator("#preview")).to_contain_text(f"it waits in plan {Plan.objects.get().pk}")
    expect(page.locator(GO)).to_have_count(0)


def test_preview_left_open_in_another_tab_leads_to_the_plan_that_was_made(web, page):
    dead_entries(2)
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/actions/outbox.redrive/?all=1")
    page.fill(REASON, "once")
    page.evaluate("document.querySelector('form.confirm').target = '_blank'")
    for said in ("runs: 2 rows", "This was sent already"):
        page.evaluate(
            "document.querySelectorAll('form.confirm button').forEach("
            "it => { it.disabled = false; })"
        )
        with page.context.expect_page() as opened:
            page.click(GO)
        opened.value.wait_for_url(PLAN_PAGE)
        expect(opened.value.locator("#main")).to_contain_text(said)
    assert Plan.objects.count() == 1


# Roles


def test_viewer_sees_no_buttons_and_is_refused_at_the_preview(web, manage, page, watch):
    order = stuck_order(manage)
    dead_entries(2)
    enter(page, web.url, VIEWER)
    for path, there in (
        ("", "#content [data-live=jobs]"),
        ("stuck/", f"#in_progress tr:has-text('{order.number}')"),
        ("dlq/", ".belongings table"),
        (f"splits/splitorder/{order.pk}/change/", ".belongings table"),
    ):
        page.goto(f"{web.url}/admin/{path}")
        expect(page.locator(there).first).to_be_visible()
        # The filter of a list is a form that only looks.
        expect(page.locator("#content .button:not(form[method=get] .button)")).to_have_count(0)
    watch.forgive("403")
    refused = page.goto(f"{web.url}/admin/actions/outbox.redrive/?all=1")
    assert refused.status == 403
    assert "Your role lacks the permission" in page.inner_text("main")
    assert Plan.objects.count() == 0


# Keyboard, narrow screens, languages, colours


def test_redrive_needs_no_mouse(web, page):
    dead_entries(2)
    user = member(OPERATOR)
    page.goto(f"{web.url}/admin/")
    tab_to(page, "input[name=username]")
    page.keyboard.type(user.username)
    tab_to(page, "input[name=password]")
    page.keyboard.type("a long password")
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/")
    tab_to(page, "#nav-sidebar a[href$='/dlq/']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/dlq/")
    tab_to(page, ".belongings a[aria-label^='Redrive: ']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/actions/outbox.redrive/**")
    expect(page.locator(REASON)).to_be_focused()
    page.keyboard.type("without a mouse")
    tab_to(page, GO)
    page.keyboard.press("Enter")
    page.wait_for_url(PLAN_PAGE)
    assert Plan.objects.get().reason == "without a mouse"


def test_menu_of_a_narrow_screen_opens_by_keyboard(web, open_page):
    page = open_page(viewport=NARROW)
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/")
    expect(page.locator("#nav-sidebar")).to_be_hidden()
    tab_to(page, MENU)
    page.keyboard.press("Enter")
    expect(page.locator("#nav-sidebar")).to_be_visible()
    tab_to(page, "#nav-sidebar a[href$='/stuck/']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/stuck/")


def test_user_menu_opens_and_logs_out_by_keyboard(web, page):
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/")
    tab_to(page, "#nav-sidebar [role=button]:has(.truncate)")
    page.keyboard.press("Enter")
    expect(page.locator("#logout-form")).to_be_visible()
    page.focus("#logout-form button")
    page.keyboard.press("Enter")
    expect(page.locator("#logout-form")).to_have_count(0)
    assert not Session.objects.exists()


def test_no_page_is_wider_than_a_narrow_screen(web, manage, open_page):
    order = stuck_order(manage)
    dead_entries(2)
    page = open_page(viewport=NARROW)
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/actions/outbox.redrive/?all=1")
    assert overflow(page) <= 0, page.url
    confirm(page, "to see the plan")
    for path in ("", "dlq/", "stuck/", f"splits/splitorder/{order.pk}/change/", None):
        page.goto(f"{web.url}/admin/{path}") if path is not None else page.goto(plan_of(web))
        expect(page.locator("#content")).to_be_visible()
        assert overflow(page) <= 0, page.url


CUT_OFF = """cells => cells.filter(it => it.scrollHeight > it.clientHeight + 1
    || it.scrollWidth > it.clientWidth + 1).map(it => it.innerText)"""


def test_narrow_lists_cut_nothing_off_and_break_no_number(web, open_page):
    entry = dead_entries(1)[0]
    OutboxEntry.objects.filter(pk=entry.pk).update(last_error="too long for one line " * 20)
    day = db_now()
    AuditArchive.objects.create(
        name="2026/02/audit-2026-02-03-001-0123abcd.jsonl.gz", day=day, first_at=day, last_at=day,
        part=1, count=1, size=1, first_id=1, last_id=1, last_seal=1, terms=b"",
    )  # fmt: skip
    page = open_page(viewport=NARROW, locale="zh-CN")
    enter(page, web.url, OPERATOR)
    for path in ("ledger/deadletter/", "recovery/auditarchive/"):
        page.goto(f"{web.url}/admin/{path}")
        cells = page.locator("#result_list tbody :is(td, th)[data-label]")
        expect(cells.first).to_be_visible()
        assert cells.evaluate_all(CUT_OFF) == [], path
    page.goto(f"{web.url}/admin/ledger/account/{Account.objects.get(code=ACCOUNT).pk}/change/")
    numbers = page.locator(".belongings td.number")
    expect(numbers.first).to_be_visible()
    style = "its => its.map(it => getComputedStyle(it).whiteSpace)"
    assert set(numbers.evaluate_all(style)) == {"nowrap"}


def plan_of(web):
    return f"{web.url}/admin/recovery/plan/{Plan.objects.get().pk}/change/"


def test_language_is_changed_in_the_user_menu(web, page):
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    for code, heading in (("zh-hans", "总览"), ("en", "Overview")):
        page.click("#nav-sidebar [role=button]:has(.truncate)")
        page.click(f"form:has(input[name=language][value={code}]) button")
        expect(page.locator("html")).to_have_attribute("lang", code)
        expect(page.locator("h1")).to_contain_text(heading)


def test_dark_scheme_makes_the_pages_dark(web, open_page):
    page = open_page(color_scheme="dark")
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/")
    expect(page.locator("html")).to_have_class(re.compile(r"\bdark\b"))
    page.emulate_media(color_scheme="light")
    page.reload()
    expect(page.locator("html")).not_to_have_class(re.compile(r"\bdark\b"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(web, manage, open_page, scheme):
    order = stuck_order(manage)
    dead_entries(12)
    page = open_page(color_scheme=scheme)
    found = {}

    def look(name, path=None):
        if path is not None:
            page.goto(f"{web.url}/admin/{path}")
        page.wait_for_load_state("networkidle")
        seen = Axe().run(page).response["violations"]
        bad = [
            (
                it["id"],
                it["impact"],
                [node["html"][:200] for node in it["nodes"][:4]],
                [node["failureSummary"][:300] for node in it["nodes"][:2]],
            )
            for it in seen
            if it["impact"] in SERIOUS
        ]
        if bad:
            found[name] = bad

    look("log-in", "")
    enter(page, web.url, ADMINISTRATOR)
    look("overview", "")
    look("dead letters", "dlq/")
    look("stuck orders", "stuck/")
    look("order", f"splits/splitorder/{order.pk}/change/")
    look("list", "splits/splitorder/")
    look("entries", "ledger/outboxentry/")
    look("recovery", f"actions/split.recover/?ids={order.pk}")
    look("preview", "actions/outbox.redrive/?all=1")
    confirm(page, "to see the plan")
    look("plan")
    assert not found, json.dumps(found, indent=1, ensure_ascii=False)


# What happens while a page is open


def test_overview_says_that_the_session_has_ended(web, page):
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/")
    expect(page.locator("[data-live=verdict]")).to_be_visible()
    Session.objects.all().delete()
    state = page.locator("[data-live-state]")
    expect(state).to_have_text("You are logged out: reload the page to log in again.")
    page.reload()
    expect(page.locator("#login-form")).to_be_visible()


def test_overview_says_that_the_server_is_away_and_goes_on_when_it_is_back(web, page, watch):
    watch.forgive("net::ERR_")  # refused, or killed before or in the middle of its answer
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/")
    state = page.locator("[data-live-state]")
    expect(state).to_have_text("")
    web.started.kill_all()
    expect(state).to_have_text("The server does not answer: this is how it stood.")
    web.start()
    expect(state).to_have_text("")


def test_refresh_keeps_the_place_of_the_reader(web, manage, page):
    stuck_order(manage)
    enter(page, web.url, OPERATOR)
    page.goto(f"{web.url}/admin/")
    link = page.locator("[data-live=records] a", has_text="job-paused").first
    link.focus()
    page.evaluate("scrollTo(0, 300)")
    before = page.evaluate("scrollY")
    assert before > 0
    assert pauses.resume(STUCK_JOB, actor="cli:tester", reason="another record above")
    expect(page.locator("[data-live=records]")).to_contain_text("job-resumed")
    assert focused(page) == "job-paused"
    assert page.evaluate("scrollY") == before


# Without JavaScript


def test_redrive_works_without_javascript(web, cluster, open_page):
    dead_entries(2)
    assert Account.objects.filter(code=ACCOUNT).reopen()
    page = open_page(java_script_enabled=False)
    log_in(page, web.url, member(OPERATOR).username)
    expect(page.locator(".figure").first).to_be_visible()
    page.click("#nav-sidebar a[href$='/dlq/']")
    page.click(".belongings a[aria-label^='Redrive: ']")
    confirm(page, "by plain forms")
    status_of_plan(page, "done")
    assert balance(ACCOUNT) == 5


def test_orders_of_a_live_cluster_reach_the_ledger_on_the_overview(web, cluster, page):
    order = SplitOrderFactory()
    enter(page, web.url, VIEWER)
    page.goto(f"{web.url}/admin/go/?q={order.number}")
    assert f"/splitorder/{order.pk}/" in page.url
    eventually(lambda: state_of(order) == OrderStatus.FINALIZED)
    page.goto(f"{web.url}/admin/")
    expect(page.locator("[data-live=sampled]")).to_contain_text("ago")
    assert_finalized_once(order)


def state_of(order):
    order.refresh_from_db()
    return order.status
