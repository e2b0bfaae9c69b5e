"""Find records in archives: only in files that may have them, the newest first."""

import heapq
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import IO, Any

from recovery.models import AuditArchive, AuditRecord, Tier
from recovery.trail import files, terms
from recovery.trail.lines import record_of
from recovery.trail.stores import Store, StoreError

Key = tuple[int, ...]
MANIFESTS_AT_ONCE = 50


def by_id(record: AuditRecord) -> Key:
    """Return the place of a record in the order of ids."""
    return (record.pk,)


def by_time(record: AuditRecord) -> Key:
    """Return the place of a record in the order of time."""
    return (micros(record.at), record.pk)


def micros(moment: datetime) -> int:
    """Return the microseconds since 1970."""
    seconds = int(moment.replace(microsecond=0).timestamp())
    return seconds * 1_000_000 + moment.microsecond


@dataclass(frozen=True)
class Wanted:
    """What records are looked for: by what narrows files down, and by what a record must have."""

    since: datetime | None = None
    until: datetime | None = None
    terms: tuple[str, ...] = ()
    """All of them, as ``terms.term`` writes them."""
    any_term: tuple[str, ...] = ()
    """One of them, if there are any."""
    words: tuple[bytes, ...] = ()
    """What a line must have in it, before it is read any closer."""
    fits: Callable[[AuditRecord], bool] = lambda _record: True
    below_id: int | None = None
    """Records of this id and higher ones are left out."""

    def manifests(self) -> Any:
        """Return the archives of which the database can tell that there may be one in them."""
        bounds = {
            "last_at__gte": self.since,
            "first_at__lt": self.until,
            "first_id__lt": self.below_id,
        }
        given = {name: value for name, value in bounds.items() if value is not None}
        return AuditArchive.objects.placed().filter(**given)

    def may_be_in(self, archive: AuditArchive) -> bool:
        """Tell whether the manifest leaves it open that there is one; False: there is none."""
        if self.since and archive.last_at < self.since:
            return False
        if self.until and archive.first_at >= self.until:
            return False
        if self.below_id is not None and archive.first_id >= self.below_id:
            return False
        if not self.has_terms:
            return True
        found = partial(terms.may_have, bytes(archive.terms))
        return all(map(found, self.terms)) and (not self.any_term or any(map(found, self.any_term)))

    @property
    def has_terms(self) -> bool:
        """Tell whether the filters of manifests narrow files down."""
        return bool(self.terms or self.any_term)


def word(name: str, value: str) -> bytes:
    """Return what the line of a record has in it whose column ``name`` is ``value``."""
    return f"{json.dumps(name)}:{json.dumps(value)}".encode("ascii")


@dataclass
class Archived:
    """Records of archives that fit, in falling order; a file is opened once it is come to."""

    wanted: Wanted
    key: Callable[[AuditRecord], Key]
    until_s: float = float("inf")
    """No file is opened after this moment of ``time.monotonic``."""
    troubles: list[str] = field(default_factory=list)
    """Files that could not be read."""
    unread: list[AuditArchive] = field(default_factory=list)
    """Files for which there was no time."""
    stopped: Key | None = None
    """Where the search of the table stopped, for which there was no time either."""
    opened: int = 0
    passed: Key | None = None
    """The place of the last record that was yielded, from wherever: all others are below."""
    _known: set[int] = field(default_factory=set)
    _waiting: list[tuple[Key, int, AuditArchive]] = field(default_factory=list)
    _heads: list[tuple[Key, int, list[tuple[Key, AuditRecord]]]] = field(default_factory=list)

    def look(self) -> None:
        """Take in the archives that were placed since the last look.

        Whoever reads the table looks after each page: what has left the table since is in a file
        whose manifest was there before.
        """
        placed = self.wanted.manifests().order_by("pk").values_list("pk", flat=True)
        fresh = [pk for pk in placed if pk not in self._known]
        self._known.update(fresh)
        for at in range(0, len(fresh), MANIFESTS_AT_ONCE):
            some = AuditArchive.objects.filter(pk__in=fresh[at : at + MANIFESTS_AT_ONCE])
            if not self.wanted.has_terms:
                some = some.defer("terms")
            for archive in filter(self.wanted.may_be_in, some):
                archive.terms = b""  # they are read, and there may be many
                heapq.heappush(self._waiting, (_falling(self._last(archive)), archive.pk, archive))

    def place(self) -> Key | None:
        """Return the place below which there was no time to look; None: there was time."""
        tops = [_next(self._last(it)) for it in self.unread[:1]]
        return max([*tops, *([self.stopped] if self.stopped else [])], default=None)

    def give_up(self) -> None:
        """Note all files that were not opened as unread."""
        while self._waiting:
            self.unread.append(heapq.heappop(self._waiting)[2])

    def _last(self, archive: AuditArchive) -> Key:
        return (
            (archive.last_id,) if self.key is by_id else (micros(archive.last_at), archive.last_id)
        )

    def above(self, bound: Key | None) -> Iterator[AuditRecord]:
        """Yield the records above a place and below what was yielded before; None: all of them.

        What was read from the table and moved to a file since is passed over.
        """
        while True:
            self._open(bound)
            if not self._heads:
                return
            top, pk, found = self._heads[0]
            place = _falling(top)
            if bound is not None and place < bound:
                return
            _place, record = found.pop()
            if found:
                heapq.heapreplace(self._heads, (_falling(found[-1][0]), pk, found))
            else:
                heapq.heappop(self._heads)
            if place != bound and (self.passed is None or place < self.passed):
                self.passed = place
                yield record

    def _open(self, bound: Key | None) -> None:
        """Open the files that may have something before all that is open."""
        while self._waiting:
            last = _falling(self._waiting[0][0])
            if bound is not None and last < bound:
                return
            if self._heads and last < _falling(self._heads[0][0]):
                return
            archive = heapq.heappop(self._waiting)[2]
            if time.monotonic() > self.until_s:
                self.unread.append(archive)
            elif found := self._read(archive):
                heapq.heappush(self._heads, (_falling(found[-1][0]), archive.pk, found))

    def _read(self, archive: AuditArchive) -> list[tuple[Key, AuditRecord]]:
        """Return the records of a file that fit, in rising order."""
        self.opened += 1
        found: list[tuple[Key, AuditRecord]] = []
        try:
            for record in records_of(archive, self.wanted.words):
                if self.wanted.fits(record):
                    found.append((self.key(record), record))
        except (StoreError, files.DamagedFileError, ValueError) as error:
            self.troubles.append(f"{archive.name}: {error}")
        found.sort(key=lambda it: it[0])
        return found


def _next(key: Key) -> Key:
    """Return the place right above a record."""
    return (*key[:-1], key[-1] + 1)


def _falling(key: Key) -> Key:
    """Turn the order round, for the heap, whose first is the lowest."""
    return tuple(-it for it in key)


def records_of(archive: AuditArchive, words: tuple[bytes, ...] = ()) -> Iterator[AuditRecord]:
    """Yield the records of a file whose lines have all of ``words`` in them.

    Raises StoreError, DamagedFileError, ValueError.
    """
    with opened(archive) as file:
        for line in files.lines(file):
            if not line.startswith(files.SEAL_MARK) and all(it in line for it in words):
                record: Any = record_of(line)
                record.archive = archive
                yield record


@contextmanager
def opened(archive: AuditArchive) -> Iterator[IO[bytes]]:
    """Open an archive's file where it is now; it may be put away meanwhile. Raises StoreError."""
    tier = AuditArchive.objects.values_list("tier", flat=True).get(pk=archive.pk)
    other = Tier.COLD if tier == Tier.WARM else Tier.WARM
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Store(tier).reading(archive.name))
        except StoreError as error:
            try:
                file = stack.enter_context(Store(other).reading(archive.name))
            except StoreError:
                raise error from None
        yield file
