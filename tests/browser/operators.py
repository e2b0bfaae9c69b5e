"""Somebody at the console in a browser, and work that needs them."""

from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Page

from ledger import accounts
from ledger.models import OutboxEntry
from recovery import pauses, schedules
from splits.models import SplitOrder, StepName
from tests.factories import SplitOrderFactory
from tests.ledger.entries import drain, into, put
from tests.processes import Manage
from tests.roles import person

PASSWORD = "a long password"
STUCK_JOB = "recoverFinalizeStuck"
SKU, UNIT = "OAK", "m2"
ACCOUNT = f"stock:{SKU}"
TABS = 200

HASTE = {
    "DEBUG": "true",
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC": "1",
    "JOB_OUTBOX_MAX_ATTEMPTS": "1",
    "JOB_OUTBOX_PERIOD_SEC": "2",
    "JOB_FINALIZE_PERIOD_SEC": "2",
    "JOB_PLANS_PERIOD_SEC": "1",
    "JOB_METRICS_PERIOD_SEC": "2",
}
"""The environment of web and cluster: nothing waits for long."""


def member(role: str) -> User:
    """Return a member of the staff who can log in."""
    user = person(role)
    user.set_password(PASSWORD)
    user.save()
    return user


def log_in(page: Page, url: str, name: str, password: str = PASSWORD) -> None:
    """Log in as people do."""
    page.goto(f"{url}/admin/")
    page.fill("input[name=username]", name)
    page.fill("input[name=password]", password)
    page.click("#login-form button[type=submit]")
    page.wait_for_url("**/admin/")


def enter(page: Page, url: str, role: str) -> None:
    """Give ``page`` the session of a member of the staff."""
    client = Client()
    client.force_login(member(role))
    value = client.cookies[settings.SESSION_COOKIE_NAME].value
    page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": value, "url": url}])


def stuck_order(manage: Manage) -> SplitOrder:
    """Return an order whose finalizer was killed; the job that would recover it is paused."""
    schedules.ensure_rows()
    pauses.pause(STUCK_JOB, actor="cli:tester", reason="a person is to do it")
    order: SplitOrder = SplitOrderFactory()
    fault = f"finalize.after_step.{StepName.CREATE_OUTPUTS}=crash"
    killed = manage("finalize", order.number, env={"RECOVERY_FAULTPOINTS": fault})
    assert killed.returncode not in (0, 1), killed
    order.refresh_from_db()
    assert order.finalize_in_progress
    return order


def dead_entries(count: int) -> list[OutboxEntry]:
    """Return entries that died of a closed account, which still is."""
    put("receipt", into(SKU, "1"))
    drain()
    assert accounts.close(ACCOUNT, UNIT, actor="cli:tester", reason="stocktaking")
    entries = [put(f"delivery-{n}", into(SKU, "2")) for n in range(count)]
    assert len(drain(max_attempts=1).dead) == count
    return entries


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until what ``selector`` names has the focus, and can be seen to have it."""
    page.wait_for_selector(selector)
    for _ in range(TABS):
        page.keyboard.press("Tab")
        if page.locator(selector).evaluate_all("its => its.includes(document.activeElement)"):
            style = "getComputedStyle(document.activeElement)"
            seen = f"{style}.outlineStyle !== 'none' || {style}.boxShadow !== 'none'"
            assert page.evaluate(seen), f"{selector} does not show the focus"
            return
    raise AssertionError(f"{selector} is not reached by the keyboard")


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    measured: int = page.evaluate(
        "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    )
    return measured
