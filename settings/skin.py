"""How the admin looks: the settings of django-unfold."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.utils.translation import gettext


def _static(path: str) -> Callable[[HttpRequest], str]:
    return lambda _request: static(path)


def _name(_request: HttpRequest) -> str:
    return gettext("Split recovery")


BLUES = {
    "50": "oklch(97% .014 254.6)",
    "100": "oklch(93.2% .032 255.6)",
    "200": "oklch(88.2% .059 254.1)",
    "300": "oklch(80.9% .105 251.8)",
    "400": "oklch(74% .14 254.6)",
    "500": "oklch(68% .16 257)",
    "600": "oklch(50% .2 262)",
    "700": "oklch(44% .19 264)",
    "800": "oklch(39% .16 265)",
    "900": "oklch(34% .13 265)",
    "950": "oklch(26% .09 268)",
}

UNFOLD: dict[str, Any] = {
    "SITE_TITLE": _name,
    "SITE_HEADER": _name,
    "SITE_SYMBOL": "carpenter",
    "SITE_URL": None,
    "SHOW_HISTORY": False,
    "SHOW_LANGUAGES": True,
    "BORDER_RADIUS": "5px",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": _static("recovery/favicon.svg")}
    ],
    "STYLES": [_static("recovery/admin.css")],
    "SCRIPTS": [_static("recovery/console.js")],
    "COLORS": {"primary": BLUES},
}
