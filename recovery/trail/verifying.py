"""Verify the trail: the chain of seals, and every record, in the table and in archives alike."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Any

from django.db.models import QuerySet

from recovery.clock import db_now
from recovery.models import ArchiveStatus, AuditArchive, AuditRecord, AuditSeal, AuditSealSpan, Tier
from recovery.models.seals import Span, span_text
from recovery.trail import files, keys
from recovery.trail.contents import Contents
from recovery.trail.lines import (
    MARK_BYTES,
    digest_of,
    hash_of,
    line_of,
    marks_of,
    record_of,
    rows_of,
)
from recovery.trail.seals import hash_of_seal
from recovery.trail.stores import Hashing, Store, StoreError

MOST_FINDINGS = 100
LATE = timedelta(hours=1)
"""A record that is in no seal for so long is an alarm."""
IDS_AT_ONCE = 10_000
SEALS_AT_ONCE, RECORDS_AT_ONCE, BYTES_AT_ONCE = 100, 5_000, 16 << 20
NAMES_AT_ONCE = 500
TABLE = "table"


@dataclass(frozen=True)
class Finding:
    """What is not as it was sealed."""

    what: str
    """Of a record ``changed``, ``removed``, ``inserted``, ``unsealed``; else ``seal-…``,
    ``file-…`` or ``unknown-key``."""
    place: str
    """``table``, or the name of an archive."""
    record: int | None = None
    seal: int | None = None
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``audit verify --json`` prints it."""
        return dict(vars(self))

    def __str__(self) -> str:
        """Return it as one line."""
        who = f"record {self.record}: " if self.record is not None else ""
        seal = f", seal {self.seal}" if self.seal is not None else ""
        return f"{who}{self.what} ({self.place}{seal}){': ' if self.detail else ''}{self.detail}"


@dataclass(frozen=True)
class Kept:
    """A seal that was kept elsewhere, to compare the chain with."""

    number: int
    hash: str


@dataclass
class Verification:
    """What was verified so far, and what was found."""

    findings: list[Finding] = field(default_factory=list)
    records: int = 0
    seals: int = 0
    archives: int = 0
    waiting: int = 0
    """Records that the next seal takes."""
    newest: AuditSeal | None = None
    notes: list[str] = field(default_factory=list)
    """What is no finding, and has to be looked at all the same."""
    on_records: Callable[[int], Any] = lambda _count: None
    """Called with how many more records were verified."""

    @property
    def is_full(self) -> bool:
        """Tell whether no more findings are taken."""
        return len(self.findings) >= MOST_FINDINGS

    def find(self, what: str, place: str, **facts: Any) -> None:
        """Take a finding."""
        if not self.is_full:
            self.findings.append(Finding(what, place, **facts))

    def count(self, records: int) -> None:
        """Count verified records."""
        self.records += records
        self.on_records(records)


def verify(
    kept: Kept | None = None, *, on_records: Callable[[int], Any] = lambda _count: None
) -> Verification:
    """Verify all there is; work goes on meanwhile, and is no finding.

    Records are read once each; it takes the memory of one file's terms.
    """
    done = Verification(on_records=on_records)
    _chain(done, kept)
    seen: set[int] = set()
    _archives(done, seen)
    _table(done)
    _archives(done, seen)  # those that were written meanwhile
    _strangers(done)
    _strays(done)
    return done


def _chain(done: Verification, kept: Kept | None) -> None:
    """Each seal says what was signed, and follows the one before it."""
    known, own, unknown = keys.all_keys(), keys.own_keys(), set()
    before: AuditSeal | None = None
    kept_hash = None
    own_has_signed = False
    for seal in in_order():
        done.seals += 1
        _follows(done, seal, before)
        key = known.get(seal.key)
        if seal.hash != hash_of_seal(seal, seal.ranges()):
            done.find("seal-changed", TABLE, seal=seal.number, detail="its hash is another one")
        elif key is None and seal.key not in unknown:
            unknown.add(seal.key)
            detail = f"signed by key {seal.key}, which AUDIT_SEAL_KEYS does not have"
            done.find("unknown-key", TABLE, seal=seal.number, detail=detail)
        elif key is not None and seal.mac != keys.mac_of(key, seal.hash):
            done.find("seal-changed", TABLE, seal=seal.number, detail="it is not signed by its key")
        elif own_has_signed and seal.key not in own:
            detail = "signed by a key made of SECRET_KEY, though AUDIT_SEAL_KEYS had signed before"
            done.find("seal-changed", TABLE, seal=seal.number, detail=detail)
        own_has_signed |= seal.key in own
        if kept and seal.number == kept.number:
            kept_hash = seal.hash
        before = seal
    done.newest = before
    if kept and kept_hash != kept.hash:
        detail = f"the kept seal {kept.number} is {'another one' if kept_hash else 'not there'}"
        done.find("seal-removed", TABLE, seal=kept.number, detail=detail)


def in_order(first: int = 1) -> Iterator[AuditSeal]:
    """Yield seals in the order of the chain, with spans, some at a time: the driver keeps all."""
    seals = AuditSeal.objects.order_by("number").defer("marks", "gaps").with_spans()
    while some := list(seals.filter(number__gte=first)[:SEALS_AT_ONCE]):
        yield from some
        first = some[-1].number + 1


def _follows(done: Verification, seal: AuditSeal, before: AuditSeal | None) -> None:
    number, previous = (before.number, before.hash) if before else (0, "")
    if seal.number != number + 1:
        missing = span_text((number + 1, seal.number - 1))
        done.find("seal-removed", TABLE, seal=number + 1, detail=f"missing: {missing}")
    elif seal.previous != previous:
        done.find("seal-changed", TABLE, seal=seal.number, detail="it follows another seal")


def _table(done: Verification) -> None:
    """Records that are in the table alone."""
    last = 0
    while not done.is_full:
        hot = AuditSeal.objects.in_table().filter(number__gt=last).order_by("number")
        some = _as_many(hot.defer("gaps", "marks").with_spans()[:SEALS_AT_ONCE])
        if not some:
            return
        last = some[-1].number
        marks = AuditSeal.objects.in_bulk([it.number for it in some])
        spans = {it.number: it.ranges() for it in some}
        rows = rows_of(sorted(span for ranges in spans.values() for span in ranges))
        lines = {row[0]: line_of(row) for row in rows}
        for number, ranges in spans.items():
            _seal(done, marks[number], ranges, lines)


def _as_many(seals: Iterable[AuditSeal]) -> list[AuditSeal]:
    """Return the first seals, so that what is read at once is bounded; at least one."""
    some: list[AuditSeal] = []
    count = size = 0
    for seal in seals:
        count, size = count + seal.count, size + seal.size
        if some and (count > RECORDS_AT_ONCE or size > BYTES_AT_ONCE):
            break
        some.append(seal)
    return some


def _seal(
    done: Verification, seal: AuditSeal, spans: Sequence[Span], lines: Mapping[int, bytes]
) -> None:
    made = [(pk, lines[pk]) for pk in _ids(spans) if pk in lines]
    found = _compare(seal, spans, made, TABLE)
    if found and AuditSeal.objects.in_table().filter(pk=seal.pk).exists():
        done.findings += found
    done.count(len(made))


def _compare(
    seal: AuditSeal, spans: Sequence[Span], found: Sequence[tuple[int, bytes]], place: str
) -> list[Finding]:
    """Return what of a seal's lines is not what was sealed, the first record first."""
    hashes = [hash_of(line) for _pk, line in found]
    if digest_of(hashes) == seal.digest:
        if marks_of(hashes) == bytes(seal.marks):
            return []
        return [Finding("seal-changed", place, seal=seal.number, detail="its marks are others")]
    marks = dict(zip(_ids(spans), _marks(seal), strict=False))
    seen: dict[int, str] = {}
    wrong = []
    for (pk, line), hashed in zip(found, hashes, strict=True):
        if pk not in marks or pk in seen:
            wrong.append(Finding("inserted", place, pk, seal.number, _named(line)))
        elif bytes.fromhex(hashed[: 2 * MARK_BYTES]) != marks[pk]:
            wrong.append(Finding("changed", place, pk, seal.number, _named(line)))
        seen[pk] = hashed
    wrong += [Finding("removed", place, pk, seal.number) for pk in marks if pk not in seen]
    if not wrong:
        detail = "its records are in another order, or its digest was changed"
        return [Finding("seal-changed", place, seal=seal.number, detail=detail)]
    return sorted(wrong, key=lambda it: it.record or 0)


def _ids(spans: Iterable[Span]) -> Iterator[int]:
    for first, last in spans:
        yield from range(first, last + 1)


def _marks(seal: AuditSeal) -> Iterator[bytes]:
    kept = bytes(seal.marks)
    return (kept[at : at + MARK_BYTES] for at in range(0, len(kept), MARK_BYTES))


def _named(line: bytes) -> str:
    try:
        record = record_of(line)
    except ValueError:
        return "no audit record"
    return f"{record.action} {record.target_type}/{record.target_id} by {record.actor}"


def _archives(done: Verification, seen: set[int]) -> None:
    """Records that are in archives, file by file."""
    placed = AuditArchive.objects.placed().order_by("day", "part").values_list("pk", flat=True)
    for pk in [it for it in placed if it not in seen]:
        if done.is_full:
            return
        seen.add(pk)
        done.archives += 1
        _file(done, AuditArchive.objects.get(pk=pk))


def _file(done: Verification, archive: AuditArchive) -> None:
    """Verify a file where it is; it may be put away meanwhile, or a restore says it is warm."""
    seals = {it.number: it for it in archive.seals.defer("gaps").with_spans()}
    missing: StoreError | None = None
    for tier in _tiers_of(archive):
        found = Verification()
        try:
            _read(found, archive, Store(tier), seals)
        except StoreError as error:
            missing = missing or error
            continue
        done.findings += found.findings
        done.count(found.records)
        return
    done.find("file-missing", archive.name, record=archive.first_id, detail=str(missing))


def _tiers_of(archive: AuditArchive) -> list[str]:
    """Return the tiers, the one an archive should be in now first."""
    tier = AuditArchive.objects.values_list("tier", flat=True).get(pk=archive.pk)
    return [tier, Tier.COLD if tier == Tier.WARM else Tier.WARM]


def _read(
    done: Verification, archive: AuditArchive, store: Store, seals: Mapping[int, AuditSeal]
) -> None:
    """Verify the file in a store, opened once; raise StoreError."""
    left, contents = set(seals), Contents()
    with store.reading(archive.name) as file:
        hashed = Hashing(file)
        try:
            for part in files.sealed(hashed):  # type: ignore[arg-type]  # it reads as a file does
                _part(done, archive, part, seals, left)
                for record in part.records_of():
                    contents.add(record)
        except files.DamagedFileError as error:
            _damaged(done, archive, left, error)
            return
        found_sha = hashed.to_its_end()
    _left_out(done, archive, left)
    if done.findings:
        return
    if found_sha != archive.sha256:
        done.find("file-changed", archive.name, detail="its SHA-256 is another one")
    for name, value in contents.manifest().items():
        kept = getattr(archive, name)
        if (bytes(kept) if name == "terms" else kept) != value:
            done.find("manifest-changed", archive.name, detail=f"its {name}")


def _part(
    done: Verification,
    archive: AuditArchive,
    part: files.Sealed,
    seals: Mapping[int, AuditSeal],
    left: set[int],
) -> None:
    """Compare a seal of a file, and its lines, with the seal in the table."""
    number = part.seal.number if part.seal else min(left, default=0)
    seal = seals.get(number)
    found = [(_id_of(line), line) for line in part.lines]
    if seal is None or number not in left:
        first = found[0][0] if found else None
        detail = "the seal is not one of the archive's"
        done.find("seal-added", archive.name, record=first, seal=number, detail=detail)
        return
    left.discard(number)
    spans = seal.ranges()
    done.findings += _compare(seal, spans, found, archive.name)
    if archive.status == ArchiveStatus.WRITTEN:
        _rows_left(done, spans, dict(found), number)
    same = ("previous", "day", "at", "digest", "hash", "mac", "key")
    told = part.seal and all(getattr(part.seal, it) == getattr(seal, it) for it in same)
    if not told or part.records != ",".join(map(span_text, spans)):
        done.find("seal-changed", archive.name, seal=number, detail="the file's line of it")
    done.count(len(found))


def _rows_left(
    done: Verification, spans: Sequence[Span], lines: Mapping[int, bytes], number: int
) -> None:
    """Compare what is still in the table of records that are in a file, too."""
    for row in rows_of(spans):
        line = line_of(row)
        if lines.get(row[0], line) != line:
            done.find("changed", TABLE, record=row[0], seal=number, detail=_named(line))


def _id_of(line: bytes) -> int:
    try:
        return int(record_of(line).pk)
    except ValueError:
        return -1


def _left_out(done: Verification, archive: AuditArchive, left: Iterable[int]) -> None:
    for seal in AuditSeal.objects.filter(number__in=left).defer("marks").with_spans():
        first = seal.ranges()[0][0] if seal.ranges() else None
        done.find("removed", archive.name, record=first, seal=seal.number, detail="its whole seal")


def _damaged(
    done: Verification, archive: AuditArchive, left: set[int], error: files.DamagedFileError
) -> None:
    """Name the first record that cannot be read: where the file breaks off."""
    seal = AuditSeal.objects.filter(number__in=left).with_spans().order_by("number").first()
    ids = list(_ids(seal.ranges())) if seal else []
    last = _id_of(error.after) if error.after else -1
    first = next((pk for pk in ids if pk > last), archive.last_id) if ids else archive.last_id
    number = seal.number if seal else None
    done.find("file-damaged", archive.name, record=first, seal=number, detail=str(error))


def _strangers(done: Verification) -> None:
    """Records in the table that no seal has, or that an archive has alone."""
    last = 0
    while not done.is_full:
        rows = AuditRecord.objects.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)
        ids = list(rows[:IDS_AT_ONCE])
        if not ids:
            return
        odd = _odd(ids)
        if odd:
            _judge(done, odd)
        last = ids[-1]


def _odd(ids: Sequence[int]) -> list[int]:
    """Return those of rising ids whose record is not held by a seal of the table."""
    spans = AuditSealSpan.objects.order_by("last_id")
    # No id is in two spans, so that one behind the last id, at most, has some of them.
    behind = [it.pk for it in spans.filter(last_id__gt=ids[-1])[:1]]
    within = _held(spans.filter(last_id__range=(ids[0], ids[-1])))
    ends = chain(within, _held(spans.filter(pk__in=behind)))
    span, odd = next(ends, None), []
    for pk in ids:
        while span and span[1] < pk:
            span = next(ends, None)
        if span is None or pk < span[0]:
            odd.append(pk)
    return odd


def _held(spans: "QuerySet[AuditSealSpan]") -> Iterable[Span]:
    """Return the spans whose records may be in the table."""
    held = spans.exclude(seal__archive__status=ArchiveStatus.DONE)
    return held.values_list("first_id", "last_id")


def _judge(done: Verification, odd: Sequence[int]) -> None:
    """Look once more: some were sealed meanwhile, or have left, and some wait for the next seal."""
    there = list(AuditRecord.objects.filter(pk__in=odd).order_by("pk"))
    # In this order: a seal that is made in between has what it passed in its own gaps.
    reached = AuditSealSpan.reached()
    newest = AuditSeal.objects.defer("marks").newest()
    gaps = newest.gaps if newest else []
    again = set(_odd([it.pk for it in there])) if there else set()
    late_since: datetime = db_now() - LATE
    for record in there:
        if record.pk not in again:
            continue
        waits = record.pk > reached or any(a <= record.pk <= b for a, b, _since in gaps)
        detail = f"{record.action} {record.target_type}/{record.target_id} by {record.actor}"
        if not waits:
            done.find("inserted", TABLE, record=record.pk, detail=detail)
        elif record.at < late_since:
            done.find("unsealed", TABLE, record=record.pk, detail=f"{detail}; see job auditSeal")
        else:
            done.waiting += 1


def _strays(done: Verification) -> None:
    """Note files that no archive knows of: a restored database, or a run that died, left them."""
    for tier in (Tier.WARM, Tier.COLD):
        store = Store(tier)
        names = store.names()
        try:
            while some := list(islice(names, NAMES_AT_ONCE)):  # before it is asked who knows them
                known = AuditArchive.objects.filter(name__in=some).values_list("name", flat=True)
                strays = sorted(set(some) - set(known))
                done.notes += [f"{it} ({store.alias}): no archive knows of it" for it in strays]
        except StoreError as error:
            done.notes.append(f"{store.alias} could not be listed: {error}")
