"""The admin in a browser, as staff use it."""

import re

import pytest
from django.contrib.auth import get_user_model

from tests.browser.conftest import PATIENCE_MS
from tests.web import Web

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def web(browser, manage):
    """Return a web server with an administrator ``ops``; the browser goes last."""
    get_user_model().objects.create_superuser("ops", password="a long password")
    return Web(manage, DEBUG="true")


def log_in(page, web):
    page.goto(f"{web.url}/admin/")
    page.fill("input[name=username]", "ops")
    page.fill("input[name=password]", "a long password")
    page.click("#login-form button[type=submit]")
    page.wait_for_url("**/admin/")


@pytest.mark.parametrize(("locale", "heading"), [("en-US", "Overview"), ("zh-CN", "总览")])
def test_language_follows_the_browser(browser, web, locale, heading):
    with browser.new_context(locale=locale) as context:
        context.set_default_timeout(PATIENCE_MS)
        mine = context.new_page()
        log_in(mine, web)
        assert heading in mine.inner_text("h1")
        if locale == "zh-CN":
            assert re.search("[一-鿿]", mine.inner_text("[data-live=outbox]"))
