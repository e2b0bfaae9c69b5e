"""Debian's Chromium, headless, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LAUNCH_MS = 120_000


class NoBrowserError(RuntimeError):
    """No Chromium is installed: apt-get install chromium (`make setup` does it)."""

    def __init__(self) -> None:
        """Say what the class says."""
        super().__init__(type(self).__doc__)


def path() -> str:
    """Return where the browser is; raise NoBrowserError."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise NoBrowserError
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """Yield a running browser."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=path(), args=list(QUIET), timeout=LAUNCH_MS
        )
        try:
            yield running
        finally:
            running.close()
