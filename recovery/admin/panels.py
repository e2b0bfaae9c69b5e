"""What the overview is made of: each app registers its panels, and what they say is wrong."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from django.db.models.functions import Now
from django.utils.timezone import localtime
from django.utils.translation import gettext as _

from recovery.admin.tables import Table
from recovery.history import History, buckets
from recovery.models import Sample

HOUR, DAY = timedelta(hours=1), timedelta(hours=24)
BUCKETS = {HOUR: 60, DAY: 96}


@dataclass(frozen=True)
class Concern:
    """Something that is not well, in words, and where to look."""

    text: str
    url: str
    is_bad: bool = True
    """Not just a thing to know."""


@dataclass(frozen=True)
class Figure:
    """A number at a glance."""

    title: str
    value: Any
    url: str = ""
    is_bad: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    label: str
    key: str
    """Of the gauge or flow, as ``recovery.history`` keeps it."""
    is_flow: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over time."""

    name: str
    title: str
    span: timedelta
    lines: Sequence[Line]


@dataclass
class Panel:
    """What one app has to show."""

    name: str
    title: str
    concerns: list[Concern] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


class Reading:
    """What the samples say, read once for all panels."""

    def __init__(self, user: Any) -> None:
        """Read for ``user``."""
        self.user = user
        self.values: dict[tuple[str, str], float] = {}
        self.sampled_at: datetime | None = None
        self.now: datetime | None = None
        for name, labels, value, at, now in Sample.objects.order_by().values_list(
            "name", "labels", "value", "at", Now()
        ):
            self.values[name, labels] = value
            self.sampled_at, self.now = max(at, self.sampled_at or at), now

    def value(self, name: str, **labels: str) -> float | None:
        """Return the newest value of a gauge; None: it was not sampled."""
        return self.values.get((name, label_text(**labels)))

    def count(self, name: str, **labels: str) -> int:
        """Return the newest value of a gauge that counts; 0: it was not sampled."""
        return int(self.value(name, **labels) or 0)

    def age_s(self) -> float | None:
        """Return how old the samples are; None: there are none."""
        if self.sampled_at is None or self.now is None:
            return None
        return (self.now - self.sampled_at).total_seconds()

    @cached_property
    def history(self) -> History | None:
        """Return what was sampled before; None: nothing was."""
        return History(self.now) if self.now else None


Build = Callable[[Reading], Panel]


@dataclass(frozen=True)
class _Registered:
    order: int
    permission: str
    build: Build


_panels: list[_Registered] = []


def panel(order: int, *, permission: str) -> Callable[[Build], Build]:
    """Register the decorated function as what builds a panel for those with the permission."""

    def register(build: Build) -> Build:
        _panels.append(_Registered(order, permission, build))
        return build

    return register


def built(reading: Reading) -> list[Panel]:
    """Return the panels that the reader may see, in their order."""
    mine = [it for it in _panels if reading.user.has_perm(it.permission)]
    return [it.build(reading) for it in sorted(mine, key=lambda it: it.order)]


def label_text(**labels: str) -> str:
    """Return labels as samples keep them."""
    return json.dumps(labels, sort_keys=True, ensure_ascii=False) if labels else ""


def drawn(chart: Chart, history: History) -> dict[str, Any]:
    """Return a chart as the page and its script have it."""
    bounds = buckets(history.now, span=chart.span, count=BUCKETS[chart.span])
    sets = [{"label": it.label, "data": _points(it, history, bounds)} for it in chart.lines]
    labels = [f"{localtime(it):%H:%M}" for it in bounds[1:]]
    return {
        "name": chart.name,
        "title": chart.title,
        "says": _says(chart, sets),
        "content": json.dumps({"labels": labels, "sets": sets}, ensure_ascii=False),
    }


def _points(line: Line, history: History, bounds: Sequence[datetime]) -> list[float | None]:
    read = history.rate if line.is_flow else history.gauge
    return read(line.key, bounds)


def _says(chart: Chart, sets: Sequence[dict[str, Any]]) -> str:
    """Return a chart in words: the newest and the highest value of each line."""
    parts = [chart.title]
    for it in sets:
        known = [value for value in it["data"] if value is not None]
        if known:
            text = _("%(label)s: now %(now)g, at most %(most)g")
            parts.append(text % {"label": it["label"], "now": known[-1], "most": max(known)})
    return "; ".join(parts)
