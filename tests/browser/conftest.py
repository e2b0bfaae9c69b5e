"""A browser whose console is watched."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser import chromium
from tests.browser.watching import Watch

PATIENCE_MS = 60_000
WIDE = {"width": 1280, "height": 900}

Open = Callable[..., Page]


@pytest.fixture
def browser(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    """Return a browser of this test's own: it must be gone before the database is flushed.

    Playwright's loop runs in this thread while it lives; the ORM is used from it all the same.
    """
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    with chromium.browser() as running:
        # Within the loop Django has another connection, as old as the browser test before this one.
        connection.close()
        yield running
        connection.close()


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Return what notes errors of pages; those that no test has forgiven fail it."""
    noted = Watch()
    yield noted
    assert not noted.unforgiven(), noted.unforgiven()


@pytest.fixture
def open_page(browser: Browser, watch: Watch) -> Iterator[Open]:
    """Return what opens a page in a context of its own, with Playwright's options for it."""
    contexts: list[BrowserContext] = []

    def opened(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": WIDE, "locale": "en", **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.on("page", watch.follow)
        return context.new_page()

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: Open) -> Page:
    """Return an empty page; errors in its scripts, its console and its policy fail the test."""
    return open_page()
