"""What reconcile found, and the repair it proposes."""

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

from ledger.outbox import quantity_text
from ledger.payloads import AccountKey

Changes = dict[AccountKey, Decimal]


@dataclass(frozen=True)
class Finding:
    """Two things that should agree and do not."""

    kind: str
    target: str
    expected: str
    found: str
    repair: str

    def as_dict(self) -> dict[str, str]:
        """Return the finding as ``reconcile --json`` prints it."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the finding as people read it."""
        return (
            f"{self.kind}  {self.target}\n  expected {self.expected}\n"
            f"  found    {self.found}\n  repair   {self.repair}"
        )


@dataclass
class Report:
    """What was checked, and what disagrees."""

    on_finding: Callable[[Finding], object] = lambda _finding: None
    on_checked: Callable[[int], object] = lambda _count: None
    checked: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    """Pending entries, which are counted as if they were posted."""
    findings: int = 0

    @property
    def ok(self) -> bool:
        """Tell whether everything agrees."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as ``reconcile --json`` prints them."""
        return {"checked": dict(self.checked), "in_flight": self.in_flight, "ok": self.ok}

    def as_text(self) -> str:
        """Return the counts as people read them."""
        counts = ", ".join(f"{count} {what}" for what, count in self.checked.items())
        return (
            f"checked: {counts or 'nothing there'}\n"
            f"in flight: {self.in_flight} entries not posted yet\n"
            f"{'everything agrees' if self.ok else f'{self.findings} findings'}"
        )

    def find(self, kind: str, target: str, *, expected: str, found: str, repair: str) -> None:
        """Report one finding."""
        self.findings += 1
        self.on_finding(Finding(kind, target, expected, found, repair))

    def count(self, what: str, number: int) -> None:
        """Count what was checked."""
        self.checked[what] += number
        self.on_checked(number)


def repair_of(kind: str, target: str) -> str:
    """Return the command that repairs what was found, on the record."""
    return f'manage.py reconcile --repair {kind} {shlex.quote(target)} --reason "…"'


def add_changes(changes: Changes, more: Changes) -> None:
    """Add ``more`` to ``changes`` in place."""
    for key, quantity in more.items():
        changes[key] = changes.get(key, Decimal(0)) + quantity


def changes_text(changes: Changes) -> str:
    """Return the changes of accounts as one line, sorted."""
    texts = [
        f"{code} {quantity_text(quantity)} {unit}"
        for (code, unit), quantity in sorted(changes.items())
        if quantity
    ]
    return ", ".join(texts) or "nothing"


def same_changes(left: Changes, right: Changes) -> bool:
    """Tell whether two sets of changes move the same; accounts that do not move don't count."""
    keys = left.keys() | right.keys()
    return all(left.get(key, 0) == right.get(key, 0) for key in keys)
