"""Spans kept in memory, to look at."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.test import override_settings
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from recovery.tracing import spans

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, PARENT = REMOTE.split("-")[1:3]


class Spans:
    """The spans that were ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        """Read what the exporter keeps."""
        self.exporter = exporter

    def all(self, name: str = "", **attributes: object) -> list[ReadableSpan]:
        """Return spans of a name, with these attributes, in the order of their ends."""
        return [
            it
            for it in self.exporter.get_finished_spans()
            if (not name or it.name == name)
            and {**(it.attributes or {}), **attributes} == dict(it.attributes or {})
        ]

    def one(self, name: str = "", **attributes: object) -> ReadableSpan:
        """Return the only such span."""
        found = self.all(name, **attributes)
        names = [(it.name, dict(it.attributes or {})) for it in self.all()]
        assert len(found) == 1, names
        return found[0]


@contextmanager
def traced() -> Iterator[Spans]:
    """Switch tracing on; hand over what ends meanwhile."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans.use(provider)
    try:
        with override_settings(TRACING_ENABLED=True):
            yield Spans(exporter)
    finally:
        spans.use(None)


def trace_of(span: ReadableSpan) -> str:
    """Return the id of a span's trace."""
    return f"{span.context.trace_id:032x}"


def id_of(span: ReadableSpan) -> str:
    """Return a span's own id."""
    return f"{span.context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str:
    """Return the id of its parent; empty: it is a root."""
    return f"{span.parent.span_id:016x}" if span.parent else ""


def links_of(span: ReadableSpan) -> list[tuple[str, str]]:
    """Return trace and span that it is linked to, of each link."""
    return [
        (f"{it.context.trace_id:032x}", f"{it.context.span_id:016x}") for it in span.links or ()
    ]
