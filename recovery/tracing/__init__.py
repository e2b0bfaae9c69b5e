"""Spans of what happens, for OpenTelemetry; nothing at all, not even an import, where it is off.

``TRACING_ENABLED`` decides, and the extra ``tracing`` brings what is needed. A ``traceparent`` (W3C
Trace Context, version 00) is stored with each order and outbox entry, so that a trace goes on where
work goes on later, in another process: by the first attempt as its child, by later ones as traces
of their own that are linked to it. Fresh attempts that people give are later ones, too.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from django.conf import settings

if TYPE_CHECKING:
    from recovery.tracing.spans import Open

__all__ = ["attempt", "begun", "current", "enabled", "fresh", "record", "span", "together"]


class Off:
    """A span where tracing is off."""

    traceparent = ""

    def note(self, **_attributes: Any) -> None:
        """Do nothing."""

    def fail(self, _code: str) -> None:
        """Do nothing."""

    def drop(self) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


_off = Off()
_nothing: AbstractContextManager[Off] = nullcontext(_off)


def enabled() -> bool:
    """Tell whether spans are made."""
    return bool(settings.TRACING_ENABLED)


def current() -> str:
    """Return the ``traceparent`` of the span at work; empty where there is none."""
    if not settings.TRACING_ENABLED:
        return ""
    from recovery.tracing import spans

    return spans.current()


def span(name: str, **attributes: Any) -> "AbstractContextManager[Open | Off]":
    """Make a span of what is done within: a child of the one at work, else a root."""
    if not settings.TRACING_ENABLED:
        return _nothing
    from recovery.tracing import spans

    return spans.within(spans.child(name, attributes))


def fresh(name: str, **attributes: Any) -> "AbstractContextManager[Open | Off]":
    """Make a span of what is done within, unless one is at work: then that one counts."""
    return _nothing if current() else span(name, **attributes)


def attempt(
    name: str, *, traceparent: str, first: bool, **attributes: Any
) -> "AbstractContextManager[Open | Off]":
    """Make a span of an attempt: the first continues a trace, others are linked to it."""
    if not settings.TRACING_ENABLED:
        return _nothing
    from recovery.tracing import spans

    return spans.within(spans.attempt(name, traceparent, attributes, first=first))


def begun(name: str, *, traceparent: str, **attributes: Any) -> "Open | Off":
    """Begin the span of a first attempt that is one of many at once; whoever begins it ends it."""
    if not settings.TRACING_ENABLED:
        return _off
    from recovery.tracing import spans

    return spans.attempt(name, traceparent, attributes, first=True)


def together(name: str, traceparents: Iterable[str], **attributes: Any) -> "Open | Off":
    """Begin the span of what is done for many at once, linked to each; the caller ends it."""
    if not settings.TRACING_ENABLED:
        return _off
    from recovery.tracing import spans

    return spans.together(name, traceparents, attributes)


def record(
    name: str, *, traceparent: str, first: bool, since_ns: int, code: str = "", **attributes: Any
) -> None:
    """Record an attempt that was made among others from ``since_ns`` (of the epoch) until now."""
    if settings.TRACING_ENABLED:
        from recovery.tracing import spans

        made = spans.attempt(name, traceparent, attributes, first=first, since_ns=since_ns)
        if code:
            made.fail(code)
        made.end()
