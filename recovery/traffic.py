"""Requests by view, method and status, as django-prometheus counts them."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django_prometheus.middleware import (  # type: ignore[import-untyped]
    PrometheusAfterMiddleware,
)


class TrafficMiddleware(PrometheusAfterMiddleware):  # type: ignore[misc]
    """Counts requests under labels of which there is an end, whatever they are sent with.

    The library keeps methods that nobody knows out of all its metrics but the latency by view.
    """

    def label_metric(
        self, metric: Any, request: HttpRequest, response: HttpResponse | None = None, **labels: str
    ) -> Any:
        """Return the metric to count in."""
        if "method" in labels:
            labels["method"] = self._method(request)
        return super().label_metric(metric, request, response, **labels)
