"""The DLQ: dead entries, filed by why they died."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Count, Exists, Max, Min, OuterRef, QuerySet, TextField
from django.db.models.functions import Cast

from ledger.models import DeadLetter, OutboxEntry
from recovery.clock import seconds_from_now
from recovery.models import stored_text

PATTERN_MAX_LENGTH = 300
READ_OF_ERROR = 2_000
"""So much of a text decides on its group."""
GROUP_LENGTH = 12
FILED_AT_ONCE = 500

_PLACEHOLDERS = (
    (r"\{.*\}", "{…}"),
    (r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b", "<id>"),
    (r"\b\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}\S*", "<time>"),
    (r"'[^']*'|\"[^\"]*\"|«[^»]*»", "<text>"),
    (r"\b([a-z][a-z_-]*):[^\s,;]+", r"\1:*"),
    (r"\b0x[0-9a-fA-F]+\b|\b(?=[a-f]*\d)[0-9a-f]{8,}\b", "<id>"),
    (r"[-+]?\d+(?:[.,]\d+)*", "<n>"),
    (r"\s+", " "),
)
_RULES = tuple((re.compile(rule, re.DOTALL), by) for rule, by in _PLACEHOLDERS)


def pattern_of(error: str) -> str:
    """Return ``error`` without what differs from entry to entry: names, ids, numbers, times."""
    text = error[:READ_OF_ERROR]
    for rule, by in _RULES:
        text = rule.sub(by, text)
    return stored_text(text.strip(), PATTERN_MAX_LENGTH)


def group_of(code: str, pattern: str) -> str:
    """Return the name of the group of a code and a pattern (12 hexadecimal digits)."""
    text = f"{code}\0{pattern}".encode("utf-8", "replace")
    return hashlib.sha256(text).hexdigest()[:GROUP_LENGTH]


def file(dead: Iterable[tuple[int, str, str]]) -> None:
    """File entries that are dead now, each given as id, code and error text."""
    letters = []
    for pk, code, error in dead:
        pattern = pattern_of(error)
        group = group_of(code, pattern)
        letters.append(DeadLetter(entry_id=pk, group=group, code=code, pattern=pattern))
    # One may be there of an earlier life that another program brought back.
    DeadLetter.objects.bulk_create(letters, batch_size=FILED_AT_ONCE, ignore_conflicts=True)


def take_out(ids: Sequence[int]) -> None:
    """Take entries that are not dead any more out of the files."""
    DeadLetter.objects.filter(pk__in=ids).delete()


def tidy() -> int:
    """File what died by other hands, and take out what lives; return how many of either."""
    dead = OutboxEntry.objects.dead().order_by()
    unfiled = dead.filter(~Exists(DeadLetter.objects.filter(pk=OuterRef("pk"))))
    missing = list(unfiled.values_list("pk", flat=True))
    alive = DeadLetter.objects.filter(~Exists(OutboxEntry.objects.dead().filter(pk=OuterRef("pk"))))
    stale = list(alive.order_by().values_list("pk", flat=True))
    for start in range(0, len(missing), FILED_AT_ONCE):
        some = dead.filter(pk__in=missing[start : start + FILED_AT_ONCE])
        with transaction.atomic():
            file(some.values_list("pk", "last_error_code", "last_error"))
    for start in range(0, len(stale), FILED_AT_ONCE):
        take_out(stale[start : start + FILED_AT_ONCE])
    return len(missing) + len(stale)


@dataclass(frozen=True)
class Group:
    """Dead entries of one cause."""

    group: str
    code: str
    pattern: str
    entries: int
    first_at: datetime
    last_at: datetime
    example: int
    """The id of one of them."""


@dataclass(frozen=True)
class Filter:
    """Which dead entries are meant."""

    ids: Sequence[int] = ()
    code: str = ""
    type: str = ""
    group: str = ""
    older_than_s: float | None = None
    """Published longer ago."""

    def given(self) -> dict[str, Any]:
        """Return what is asked for, for the record; empty: all."""
        return {name: value for name, value in vars(self).items() if value not in ((), "", None)}

    def discarded(self) -> "QuerySet[OutboxEntry]":
        """Return the discarded entries that are meant; they have no group."""
        found = OutboxEntry.objects.discarded()
        if self.code:
            found = found.filter(last_error_code=self.code)
        return self._narrowed(found)

    def entries(self) -> "QuerySet[OutboxEntry]":
        """Return the dead entries that are meant, in the order they were published."""
        found = OutboxEntry.objects.dead().filter(letter__isnull=False)
        if self.code:
            found = found.filter(letter__code=self.code)
        if self.group:
            found = found.filter(letter__group=self.group)
        return self._narrowed(found)

    def letters(self) -> "QuerySet[DeadLetter]":
        """Return what files the dead entries that are meant; entries are read only if need be."""
        wanted: dict[str, Any] = {"code": self.code, "group": self.group}
        wanted |= {"entry__event_type": self.type}
        if self.ids:
            wanted["pk__in"] = self.ids
        if self.older_than_s is not None:
            wanted["entry__created_at__lt"] = seconds_from_now(-self.older_than_s)
        chosen = {name: value for name, value in wanted.items() if value not in ("", None)}
        return DeadLetter.objects.filter(**chosen).order_by()

    def _narrowed(self, found: "QuerySet[OutboxEntry]") -> "QuerySet[OutboxEntry]":
        if self.ids:
            found = found.filter(pk__in=self.ids)
        if self.type:
            found = found.filter(event_type=self.type)
        if self.older_than_s is not None:
            found = found.filter(created_at__lt=seconds_from_now(-self.older_than_s))
        return found.order_by("id")


Counted = tuple[str, int, datetime, datetime, int]
"""A group's name, how many entries it has, when the first and the last died, and one of them."""


def groups(wanted: Filter) -> list[Group]:
    """Return the groups of the entries that are meant, the largest first."""
    return described(counted(wanted))


def counted(wanted: Filter) -> list[Counted]:
    """Return the groups as they are counted, the largest first."""
    found = (
        wanted.letters()
        .values_list("group")
        .annotate(n=Count("pk"), first=Min("died_at"), last=Max("died_at"), example=Min("pk"))
    )
    return sorted(found, key=lambda row: (-row[1], row[0]))


def described(rows: Sequence[Counted]) -> list[Group]:
    """Return groups with what they have in common, which is read of one entry each."""
    examples = DeadLetter.objects.in_bulk([row[4] for row in rows])
    return [
        Group(name, examples[pk].code, examples[pk].pattern, n, first, last, pk)
        for name, n, first, last, pk in rows
        if pk in examples
    ]


def stored_payload(entry_id: int) -> str:
    """Return an entry's payload as the text that is stored, which need not be readable JSON."""
    texts = OutboxEntry.objects.annotate(text=Cast("payload", TextField()))
    return str(texts.values_list("text", flat=True).get(pk=entry_id))


def barriers(entries: Iterable[OutboxEntry]) -> dict[int, tuple[int, str]]:
    """Return what holds entries back: the first pending or dead one before each, if any.

    By entry: id and status of the first entry of its aggregate that is to come before it.
    """
    by_aggregate: dict[str, list[int]] = {}
    for entry in entries:
        by_aggregate.setdefault(entry.aggregate, []).append(entry.pk)
    first = OutboxEntry.objects.blocking().filter(aggregate__in=by_aggregate).order_by()
    heads: dict[str, tuple[int, str]] = {}
    for aggregate, status, pk in first.values_list("aggregate", "status").annotate(n=Min("pk")):
        heads[aggregate] = min(heads.get(aggregate, (pk, status)), (pk, status))
    return {
        pk: heads[aggregate]
        for aggregate, ids in by_aggregate.items()
        for pk in ids
        if aggregate in heads and heads[aggregate][0] < pk
    }
