"""How long a log-in lasts: SESSION_MAX_SEC, and SESSION_IDLE_SEC without a sign of life."""

import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import SESSION_KEY, logout
from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest, HttpResponseBase
from django.utils.translation import gettext as _

BEGAN, SEEN = "began_at", "seen_at"
NOTED_EVERY_SEC = 60
"""A sign of life is a write: not more often than this."""


def begin(request: HttpRequest, **_kwargs: Any) -> None:
    """Note when the log-in was, for Django's signal of it."""
    request.session[BEGAN] = request.session[SEEN] = _now()


class SessionLimitMiddleware:
    """Logs out whoever has been in for too long, or away."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        """Keep what answers."""
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Pass the request on, as that of somebody who is not logged in where time is up."""
        if SESSION_KEY in request.session:
            _limit(request)
        return self.get_response(request)


def _limit(request: HttpRequest) -> None:
    why = _over(request.session)
    if why:
        request.logged_out_because = why  # type: ignore[attr-defined]
        logout(request)
        messages.info(request, _("You have been logged out, as is usual after some time."))
    elif not _is_by_itself(request):
        _note(request.session)


def _over(session: SessionBase) -> str:
    now = _now()
    if now - session.setdefault(BEGAN, now) > settings.SESSION_MAX_SEC:
        return "max"
    return "idle" if now - session.setdefault(SEEN, now) > settings.SESSION_IDLE_SEC else ""


def _is_by_itself(request: HttpRequest) -> bool:
    """Tell whether the page asks, which refreshes itself, and nobody need be there."""
    return request.method == "GET" and request.headers.get("X-Requested-With") == "XMLHttpRequest"


def _note(session: SessionBase) -> None:
    every_s = min(NOTED_EVERY_SEC, settings.SESSION_IDLE_SEC // 4)
    if _now() - session[SEEN] >= every_s:
        session[SEEN] = _now()


def _now() -> int:
    return int(time.time())
