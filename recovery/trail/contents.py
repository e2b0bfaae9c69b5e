"""What a file of records has in it, as its manifest says."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from recovery.trail import terms


@dataclass
class Contents:
    """What was put into a file, or was found in one."""

    seals: list[int] = field(default_factory=list)
    terms: set[str] = field(default_factory=set)
    count: int = 0
    first_id: int = 0
    last_id: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None

    def add(self, record: Any) -> None:
        """Add a record."""
        self.count += 1
        self.first_id = min(self.first_id or record.pk, record.pk)
        self.last_id = max(self.last_id, record.pk)
        self.first_at = min(self.first_at or record.at, record.at)
        self.last_at = max(self.last_at or record.at, record.at)
        self.terms.update(_terms_of(record))

    def manifest(self) -> dict[str, Any]:
        """Return the columns of the manifest that say what is in the file."""
        return {
            "count": self.count,
            "first_id": self.first_id,
            "last_id": self.last_id,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "terms": terms.filter_of(self.terms),
        }


def _terms_of(record: Any) -> Iterator[str]:
    yield terms.term("actor", record.actor)
    yield terms.term("action", record.action)
    yield terms.term("target", record.target_id)
    if record.run_id:
        yield terms.term("run", record.run_id)
