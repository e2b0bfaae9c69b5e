"""Take the screenshots of a fresh demo for README and docs, in two languages."""

import subprocess
import sys
import tempfile
from pathlib import Path

from django.conf import settings
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize

from tests.browser import chromium
from tests.splits.demos import Demo

IMAGES = Path(settings.BASE_DIR) / "docs" / "images"
FONTS = ("fc-list", ":lang=zh")
LOCALES = {"": "en-US", "-zh": "zh-CN"}
SIZE = ViewportSize(width=1360, height=1000)
PAGES = {"overview": "", "dlq": "dlq/", "preview": "actions/outbox.redrive/?all=1"}


def main() -> int:
    """Play the demo to its end and take the pictures."""
    if not subprocess.run(FONTS, capture_output=True, check=False).stdout:
        sys.stderr.write("no font has Chinese: apt-get install fonts-wqy-microhei\n")
        return 2
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        var = Path(folder) / "var"
        demo = Demo(var)
        try:
            demo.says("Ctrl-C stops it.")
            password = (var / "demo-password").read_text()
            with chromium.browser() as browser:
                for suffix, locale in LOCALES.items():
                    take(browser, f"http://127.0.0.1:{demo.port}", password, (suffix, locale))
        finally:
            demo.end()
    return 0


def take(browser: Browser, url: str, password: str, language: tuple[str, str]) -> None:
    """Take the demo's page, pages of the console, and the page of the recovered order."""
    suffix, locale = language
    with browser.new_context(viewport=SIZE, locale=locale) as context:
        page = context.new_page()
        page.goto(f"{url}/demo/")
        page.set_viewport_size({"width": 1360, "height": 1500})
        shoot(page, f"demo{suffix}")
        page.set_viewport_size(SIZE)
        log_in(context, url, password)
        for name, path in PAGES.items():
            page.goto(f"{url}/admin/{path}")
            page.wait_for_load_state("networkidle")
            shoot(page, f"{name}{suffix}")
        page.goto(f"{url}/demo/")
        page.click('article:nth-of-type(3) a[href*="/splitorder/"]')
        page.wait_for_url("**/splitorder/**")
        page.wait_for_selector("#content h2")
        shoot(page, f"order{suffix}")


def shoot(page: Page, name: str) -> None:
    """Take one picture."""
    page.screenshot(path=IMAGES / f"{name}.png")


def log_in(context: BrowserContext, url: str, password: str) -> None:
    """Log the demo's administrator in."""
    page = context.new_page()
    page.goto(f"{url}/admin/")
    page.fill("input[name=username]", "demo")
    page.fill("input[name=password]", password)
    page.click("#login-form button[type=submit]")
    page.wait_for_url("**/admin/")


if __name__ == "__main__":
    sys.exit(main())
