"""A span of each request, which continues the trace of whoever asks."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from recovery.tracing import spans


class TracingMiddleware:
    """Makes a span of each request; stands in MIDDLEWARE only where tracing is on."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        """Keep what answers."""
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer within a span; it is named by the route, since addresses have no end."""
        method = request.method or ""
        headers = {name.lower(): value for name, value in request.headers.items()}
        facts = {"http.request.method": method}
        with spans.within(spans.served(f"{method} request", headers, facts)) as span:
            response = self.get_response(request)
            match = request.resolver_match
            if match is not None:
                span.made.update_name(f"{method} {match.route}")
                span.note(**{"http.route": match.route})
            span.note(**{"http.response.status_code": response.status_code})
            if response.status_code >= 500:
                span.fail(str(response.status_code))
        return response
