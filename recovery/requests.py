"""One record a request, and one name for all that is logged within it."""

import re
import time
import uuid
from typing import Any

import structlog
from django.http import HttpRequest, HttpResponse
from django_structlog.middlewares import RequestMiddleware
from django_structlog.signals import (
    bind_extra_request_failed_metadata,
    bind_extra_request_finished_metadata,
)

HEADER = "X-Request-ID"
TAME = re.compile(r"[A-Za-z0-9._-]{8,64}")


class RequestLogMiddleware(RequestMiddleware):
    """Names each request, by its header where a proxy has named it, and logs how it ended."""

    def prepare(self, request: HttpRequest) -> None:
        """Bind the name; whatever is logged until the answer carries it as ``request_id``."""
        given = request.headers.get(HEADER, "")
        request_id = given if TAME.fullmatch(given) else uuid.uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=request_id)
        known: Any = request
        known.request_id, known.begun = request_id, time.monotonic()

    def handle_response(self, request: HttpRequest, response: HttpResponse) -> None:
        """Log how the request ended, and name it in the answer."""
        super().handle_response(request, response)
        response[HEADER] = getattr(request, "request_id", "")


def _tell(request: HttpRequest, log_kwargs: dict[str, Any], **_kwargs: Any) -> None:
    """Say method and path, never the query; who it was; and how long it took."""
    response = _kwargs.get("response")
    user = getattr(request, "_cached_user", None)
    begun = getattr(request, "begun", None)
    log_kwargs.pop("request", None)
    log_kwargs.pop("code", None)
    log_kwargs |= {
        "method": request.method,
        "path": request.path,
        "status_code": response.status_code if response is not None else 500,
        "user": user.get_username() if user else "",
    }
    if begun is not None:
        log_kwargs["duration_s"] = round(time.monotonic() - begun, 3)


bind_extra_request_finished_metadata.connect(_tell)
bind_extra_request_failed_metadata.connect(_tell)
