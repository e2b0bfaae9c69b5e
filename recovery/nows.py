"""The database's time as a page shows ages by it: read once a request, and only if asked for."""

from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any

from django.core.signals import request_finished

from recovery.clock import db_now

_now: ContextVar[datetime | None] = ContextVar("now of the request", default=None)
_is_request: ContextVar[bool] = ContextVar("a request is answered", default=False)


def begin() -> None:
    """Forget the time of the request before."""
    _now.set(None)
    _is_request.set(True)


def end(**_signal: Any) -> None:
    """Show no ages until the next request."""
    _is_request.set(False)


request_finished.connect(end, dispatch_uid="recovery.nows.end")


def age_of(value: datetime) -> timedelta | None:
    """Return how long ago ``value`` was; negative: it is to come. None: no request is answered."""
    if not _is_request.get():
        return None
    now = _now.get()
    if now is None:
        now = db_now()
        _now.set(now)
    return now - value
