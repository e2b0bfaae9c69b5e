"""Spans made with OpenTelemetry; imported only where tracing is on."""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import util
from typing import Any

import structlog
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from recovery.tracing import stored

NAME = "split-recovery"
TEXT_CHARS = 200
EXPORT_TIMEOUT_S = 3.0
LEAVE_S = 3.0
"""A collector that does not answer keeps the end of a process waiting so long."""

_propagator = TraceContextTextMapPropagator()
_own: tuple[int, TracerProvider] | None = None
_given: TracerProvider | None = None


class Open:
    """A span that was begun."""

    def __init__(self, made: trace.Span) -> None:
        """Keep what OpenTelemetry made."""
        self.made = made
        self.dropped = False

    @property
    def traceparent(self) -> str:
        """Return what others continue it by."""
        return traceparent_of(self.made)

    def note(self, **attributes: Any) -> None:
        """Add attributes."""
        self.made.set_attributes(_plain(attributes))

    def fail(self, code: str) -> None:
        """Say that it failed, and by which code; texts may hold what is private."""
        self.made.set_status(Status(StatusCode.ERROR, code[:TEXT_CHARS]))
        self.made.set_attribute("code", code[:TEXT_CHARS])

    def drop(self) -> None:
        """Leave it out: it was about nothing."""
        self.dropped = True

    def end(self) -> None:
        """End it; one that was dropped is never seen."""
        if not self.dropped:
            self.made.end()


def use(provider: TracerProvider | None) -> None:
    """Make spans by ``provider`` from now on; None: by the process's own."""
    global _given
    _given = provider


def tracer() -> trace.Tracer:
    """Return what makes spans: of a provider of this process, for threads do not survive a fork."""
    global _own
    if _given is not None:
        return _given.get_tracer(NAME)
    if _own is None or _own[0] != os.getpid():
        _own = os.getpid(), _provider()
    return _own[1].get_tracer(NAME)


def _provider() -> TracerProvider:
    """Return a provider that exports by OTLP over HTTP; OTEL_… of the environment says where to."""
    named = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", NAME)})
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    timeout = os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT")
    exporter = OTLPSpanExporter(timeout=None if timeout else EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    # Workers are forked by multiprocessing, which leaves by os._exit: atexit is not asked there.
    util.Finalize(None, _leave, args=(os.getpid(), provider), exitpriority=0)
    return provider


def _leave(pid: int, provider: TracerProvider) -> None:
    """Send what is left. The SDK's own time-outs do not bound a full queue: each batch has one."""
    if pid != os.getpid():
        return
    last = threading.Thread(target=provider.shutdown, daemon=True)
    last.start()
    last.join(LEAVE_S)


def traceparent_of(made: trace.Span) -> str:
    """Return the ``traceparent`` of a span; empty: it is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(made, Context()))
    return carrier.get("traceparent", "")


def current() -> str:
    """Return the ``traceparent`` of the span at work; empty where there is none."""
    return traceparent_of(trace.get_current_span())


def remote(traceparent: str) -> SpanContext | None:
    """Return the span that a ``traceparent`` names; None: it names none."""
    context = _propagator.extract({"traceparent": stored.unmarked(traceparent)}, Context())
    found = trace.get_current_span(context).get_span_context()
    return found if found.is_valid else None


def child(name: str, attributes: Mapping[str, Any], *, kind: SpanKind = SpanKind.INTERNAL) -> Open:
    """Begin a child of the span at work; a root where there is none."""
    return Open(tracer().start_span(name, attributes=_plain(attributes), kind=kind))


def served(name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Open:
    """Begin the span of a request, which continues the trace that its headers name."""
    context = _propagator.extract(dict(headers), Context())
    made = tracer().start_span(name, context, SpanKind.SERVER, attributes=_plain(attributes))
    return Open(made)


def attempt(
    name: str,
    traceparent: str,
    attributes: Mapping[str, Any],
    *,
    first: bool,
    since_ns: int | None = None,
) -> Open:
    """Begin the span of an attempt at what ``traceparent`` came with.

    The first is a child of it; later ones, also fresh ones after others, are roots, linked to it.
    Where nothing came along the first is a child of the span at work.
    """
    first = first and not stored.is_retried(traceparent)
    known = remote(traceparent) if traceparent else None
    context: Context | None = None if first else Context()
    links = []
    if known and first:
        context = trace.set_span_in_context(trace.NonRecordingSpan(known), Context())
    elif known:
        links = [Link(known)]
    return Open(
        tracer().start_span(
            name, context, attributes=_plain(attributes), links=links, start_time=since_ns
        )
    )


def together(name: str, traceparents: Iterable[str], attributes: Mapping[str, Any]) -> Open:
    """Begin the span of what is done for many at once, linked to what each came with."""
    known = (remote(it) for it in traceparents if it)
    links = [Link(it) for it in known if it]
    return Open(tracer().start_span(name, attributes=_plain(attributes), links=links))


@contextmanager
def within(opened: Open) -> Iterator[Open]:
    """Let a span be the one at work, and name it in log records; end it."""
    token = contexts.attach(trace.set_span_in_context(opened.made))
    found = opened.made.get_span_context()
    names = {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}
    bound = structlog.contextvars.bind_contextvars(**names)
    try:
        yield opened
    except BaseException as error:
        opened.fail(type(error).__name__)
        raise
    finally:
        structlog.contextvars.reset_contextvars(**bound)
        contexts.detach(token)
        opened.end()


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes of plain types, bounded; empty ones are left out."""
    return {
        name: value if isinstance(value, bool | int | float) else str(value)[:TEXT_CHARS]
        for name, value in attributes.items()
        if value not in (None, "")
    }
