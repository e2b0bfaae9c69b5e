"""Figures: medians with their spread, ratios to the floor of the same run, bars met or missed."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

NAME_WIDTH = 50


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that ``share`` of all are not above (nearest rank)."""
    ordered = sorted(samples)
    rank = -(-len(ordered) * share // 1)  # rounded up
    return ordered[max(0, int(rank) - 1)]


def ratios(samples: Sequence[float], floor: Sequence[float]) -> list[float]:
    """Return the samples as ratios to the floor: round by round where both had the same rounds."""
    if len(samples) == len(floor):
        return [mine / other for mine, other in zip(samples, floor, strict=True)]
    return [statistics.median(samples) / statistics.median(floor)]


def ratio(samples: Sequence[float], floor: Sequence[float]) -> float:
    """Return the median ratio to the floor."""
    return statistics.median(ratios(samples, floor))


def interleaved(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Measure every contender in every round, every second round backwards; return the samples."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(contenders[name]())
    return found


@dataclass(frozen=True)
class Row:
    """One contender: what was measured, and beside which floor."""

    name: str
    samples: Sequence[float]
    floor: Sequence[float] = ()
    note: str = ""

    @property
    def median(self) -> float:
        """Return the median of the samples."""
        return statistics.median(self.samples)

    @property
    def ratio(self) -> float | None:
        """Return the median ratio to the floor; None where there is none."""
        return ratio(self.samples, self.floor) if self.floor else None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as it stands in the JSON document."""
        return {
            "name": self.name,
            "median": self.median,
            "low": min(self.samples),
            "high": max(self.samples),
            "ratio": self.ratio,
            "samples": [*self.samples],
            "note": self.note,
        }


@dataclass(frozen=True)
class Bar:
    """What a figure is held to."""

    claim: str
    value: float
    limit: float
    at_least: bool
    excuse: str = ""
    """Why it counts as met all the same; empty: it does not."""

    @property
    def met(self) -> bool:
        """Tell whether the figure keeps to the limit, or need not."""
        kept = self.value >= self.limit if self.at_least else self.value <= self.limit
        return kept or bool(self.excuse)

    def as_dict(self) -> dict[str, Any]:
        """Return the bar as it stands in the JSON document."""
        return {**asdict(self), "met": self.met}

    def text(self) -> str:
        """Return the bar as one line."""
        excuse = f" ({self.excuse})" if self.excuse else ""
        word = "met   " if self.met else "missed"
        return f"{word} {self.claim}: {plain(self.value)}{excuse}"


def at_least(claim: str, value: float, limit: float, *, excuse: str = "") -> Bar:
    """Return a bar that ``value`` should reach."""
    return Bar(claim, value, limit, at_least=True, excuse=excuse)


def at_most(claim: str, value: float, limit: float) -> Bar:
    """Return a bar that ``value`` should not exceed."""
    return Bar(claim, value, limit, at_least=False)


@dataclass
class Table:
    """One section's figures."""

    name: str
    title: str
    unit: str
    floor: str = ""
    """What the ratios are to."""
    rows: list[Row] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the table as it stands in the JSON document."""
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "floor": self.floor,
            "rows": [row.as_dict() for row in self.rows],
            "bars": [bar.as_dict() for bar in self.bars],
            "notes": self.notes,
        }

    def text(self) -> str:
        """Return the table as it is printed."""
        lines = [f"{self.name}: {self.title}"]
        if self.rows:
            lines.append(f"  {'':<{NAME_WIDTH}}{'median':>10}  {'low to high':<20}{self._ratio()}")
        lines += [self._line(row) for row in self.rows]
        lines += [f"  {bar.text()}" for bar in self.bars]
        if not self.bars:
            lines.append("  held to no bar")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _ratio(self) -> str:
        return f"of {self.floor}" if self.floor else ""

    def _line(self, row: Row) -> str:
        middle = f"{plain(row.median)} {self.unit}"
        low, high = min(row.samples), max(row.samples)
        spread = f"{plain(low)} to {plain(high)}" if len(row.samples) > 1 else ""
        beside = "" if row.ratio is None else f"{row.ratio:.2f}"
        line = f"  {row.name:<{NAME_WIDTH}}{middle:>10}  {spread:<20}{beside:<8}{row.note}"
        return line.rstrip()


def plain(value: float) -> str:
    """Return a number with about three digits that count."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"
