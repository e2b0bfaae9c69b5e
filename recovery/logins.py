"""Log-ins: who tries from where, on the log; and the page for who failed too often."""

import ipaddress
import logging
import math
import shlex
from datetime import datetime, timedelta
from typing import Any

from axes.apps import AppConfig
from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.db.models import Max
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from recovery import sessions

logger = logging.getLogger(__name__)


class LoginsConfig(AppConfig):  # type: ignore[misc]
    """django-axes, which counts failed log-ins, under a name for people."""

    verbose_name = gettext_lazy("Log-ins")

    def ready(self) -> None:
        """Log after axes has counted: what it found is known then."""
        super().ready()
        user_logged_in.connect(log_in)
        user_logged_in.connect(sessions.begin)
        user_logged_out.connect(log_out)
        user_login_failed.connect(log_failure)


def client_address(request: HttpRequest) -> str | None:
    """Return the address the request comes from, past PROXY_COUNT proxies of ours.

    Each of them adds the address that it was asked from; what stands before that, the client
    may have invented.
    """
    hops = [it.strip() for it in request.headers.get("X-Forwarded-For", "").split(",")]
    count = settings.PROXY_COUNT
    forwarded = hops[-count] if 0 < count <= len(hops) else ""
    return _address(forwarded) or _address(request.META.get("REMOTE_ADDR", ""))


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def log_in(request: HttpRequest, user: Any, **_kwargs: Any) -> None:
    """Log that somebody came in."""
    logger.info("logged_in", extra=_facts(request, user.get_username()))


def log_out(request: HttpRequest, user: Any, **_kwargs: Any) -> None:
    """Log that somebody went, or was logged out."""
    why = getattr(request, "logged_out_because", "asked")
    name = user.get_username() if user else ""
    logger.info("logged_out", extra={**_facts(request, name), "why": why})


def log_failure(
    credentials: dict[str, Any], request: HttpRequest | None = None, **_kwargs: Any
) -> None:
    """Log a log-in that failed, without its password."""
    facts = _facts(request, str(credentials.get("username", "")))
    locked_out = bool(getattr(request, "axes_locked_out", False))
    logger.warning("login_failed", extra={**facts, "locked_out": locked_out})


def _facts(request: HttpRequest | None, name: str) -> dict[str, Any]:
    return {"user": name, "address": client_address(request) if request else None}


def locked_out(
    request: HttpRequest, _response: HttpResponse | None, credentials: dict[str, Any] | None
) -> HttpResponse:
    """Return the page for those who failed too often: why, how long, and who can help."""
    name = str((credentials or {}).get("username", ""))
    now: datetime = request.axes_attempt_time  # type: ignore[attr-defined]
    until = _last_failure(request, name, now) + settings.AXES_COOLOFF_TIME
    facts = {
        "title": _("Too many failed log-ins"),
        "limit": settings.LOGIN_FAILURE_LIMIT,
        "name": name,
        "address": client_address(request),
        "command": f"manage.py axes_reset_username {shlex.quote(name)}",
        "until": localtime(until),
        "minutes": max(1, math.ceil((until - now) / timedelta(minutes=1))),
    }
    site: Any = admin.site
    response: HttpResponse = site.render(request, "admin/locked_out.html", facts, status=429)
    response.headers["Retry-After"] = str(math.ceil((until - now).total_seconds()))
    return response.render()  # type: ignore[attr-defined,no-any-return]


def _last_failure(request: HttpRequest, name: str, now: datetime) -> datetime:
    attempts = apps.get_model("axes", "AccessAttempt")._default_manager
    of_both = attempts.filter(username=name, ip_address=client_address(request))
    last: datetime | None = of_both.aggregate(last=Max("attempt_time"))["last"]
    return last or now
