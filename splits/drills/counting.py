"""Counters as /metrics of this host exports them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from prometheus_client import REGISTRY

from recovery import tallies


@dataclass(frozen=True)
class Count:
    """A counter that is watched."""

    name: str
    labels: Mapping[str, str]
    before: float

    @classmethod
    def begun(cls, name: str, labels: Mapping[str, str]) -> Self:
        """Begin to watch the counter."""
        return cls(name, labels, _counted(name, labels))

    def __str__(self) -> str:
        """Return the counter as Prometheus prints it."""
        labels = ",".join(f'{name}="{value}"' for name, value in self.labels.items())
        return f"{self.name}{{{labels}}}" if labels else self.name

    def grown(self) -> float:
        """Return by how much it grew."""
        return _counted(self.name, self.labels) - self.before


def _counted(name: str, labels: Mapping[str, str]) -> float:
    """Return what all processes of this host counted."""
    place = tallies.directory()
    families = tallies.read(place) if place else REGISTRY.collect()
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
