"""Move sealed records to archives: nothing is deleted that was not read back from its file."""

import gzip
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Count, Sum

from recovery import audit
from recovery.clock import db_now
from recovery.errors import with_retries
from recovery.faultpoints import faultpoint
from recovery.models import ArchiveStatus, AuditArchive, AuditRecord, AuditSeal, Tier
from recovery.models.seals import Span
from recovery.pacing import next_size
from recovery.runner import Run
from recovery.trail import files, terms
from recovery.trail.lines import COLUMNS, digest_of, hash_of, line_of, rows_of
from recovery.trail.seals import is_sound
from recovery.trail.stores import Draft, Store, StoreError, rename

logger = logging.getLogger(__name__)

ARCHIVED = "audit-archived"
TARGET = "audit-archive"
PART_RECORDS = 50_000
"""So many records a file has, or those of one seal more: they are held to be searched."""
LEAST_ROWS, MOST_ROWS = 20, 999
LONGEST_S = 0.2
SEALS_AT_ONCE = 20
_NAMES = {name: at for at, name in enumerate(COLUMNS)}


class AlteredRecordsError(Exception):
    """Records are not what they were when they were sealed: they stay where they are."""


@dataclass
class Contents:
    """What was written into a file."""

    seals: list[int] = field(default_factory=list)
    terms: set[str] = field(default_factory=set)
    count: int = 0
    first_id: int = 0
    last_id: int = 0
    first_at: Any = None
    last_at: Any = None
    newest: AuditSeal | None = None

    def add(self, seal: AuditSeal, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add a seal's records."""
        self.seals.append(seal.number)
        self.newest = seal
        self.count += len(rows)
        ids = [row[0] for row in rows]
        self.first_id = min([self.first_id or ids[0], *ids])
        self.last_id = max(self.last_id, *ids)
        self.first_at = min(self.first_at or seal.first_at, seal.first_at)
        self.last_at = max(self.last_at or seal.last_at, seal.last_at)
        for row in rows:
            self.terms.update(_terms_of(row))


def _terms_of(row: tuple[Any, ...]) -> Iterator[str]:
    yield terms.term("actor", row[_NAMES["actor"]])
    yield terms.term("action", row[_NAMES["action"]])
    yield terms.term("target", row[_NAMES["target_id"]])
    if run_id := row[_NAMES["run_id"]]:
        yield terms.term("run", run_id)


def archive(run: Run) -> Iterator[dict[str, int]]:
    """Finish what was begun, archive what is past its days, put old files away.

    Yields counts after each commit. What goes wrong with one file keeps no other one from its end;
    it is raised at the end.
    """
    troubles: list[Exception] = []
    for unfinished in AuditArchive.objects.unfinished().order_by("day", "part"):
        yield from _collecting(troubles, _finish(unfinished, run))
    yield from _collecting(troubles, _write_due(run))
    yield from _collecting(troubles, put_away(run))
    if troubles:
        raise troubles[0]


def _collecting(
    troubles: list[Exception], steps: Iterator[dict[str, int]]
) -> Iterator[dict[str, int]]:
    try:
        yield from steps
    except (OSError, AlteredRecordsError, files.DamagedFileError) as error:
        logger.warning("archive_stopped", extra={"error": str(error)})
        troubles.append(error)


def _write_due(run: Run) -> Iterator[dict[str, int]]:
    before = _hot_since(db_now())
    altered: set[int] = set()
    while (seals := _next_seals(before, altered)) is not None:
        made = _write(seals, run, altered)
        if made is not None:
            yield {"archives_written": 1}
            yield from _empty(made, run)
    if altered:
        names = ", ".join(map(str, sorted(altered)[:10]))
        raise AlteredRecordsError(
            f"{AlteredRecordsError.__doc__} audit verify names them (seals {names})"
        )


def due(now: datetime) -> tuple[int, int]:
    """Return of how many days records are to be archived, and how many records."""
    seals = due_seals(_hot_since(now)).order_by()
    facts = seals.aggregate(days=Count("day", distinct=True), records=Sum("count"))
    return facts["days"], facts["records"] or 0


def due_to_be_put_away(now: datetime) -> int:
    """Return how many archives are to be put away."""
    return AuditArchive.objects.to_put_away(_warm_since(now)).count()


def _hot_since(now: datetime) -> date:
    return (now - timedelta(days=settings.AUDIT_HOT_DAYS)).date()


def _warm_since(now: datetime) -> date:
    return (now - timedelta(days=settings.AUDIT_WARM_DAYS)).date()


def due_seals(before: date) -> Any:
    """Return the seals whose records are to be archived."""
    return AuditSeal.objects.hot().before_day(before).order_by("day", "number")


def _next_seals(before: date, altered: set[int]) -> list[AuditSeal] | None:
    """Return the seals that the next file gets: of one day, in their order."""
    due = due_seals(before).exclude(number__in=altered).defer("marks", "gaps")
    first = due.first()
    if first is None:
        return None
    taken, count = [], 0
    for seal in due.filter(day=first.day).iterator(chunk_size=100):
        taken.append(seal)
        count += seal.count
        if count >= PART_RECORDS:
            break
    return taken


def _write(seals: list[AuditSeal], run: Run, altered: set[int]) -> AuditArchive | None:
    """Write a file with the records of ``seals``; None: all of them were altered."""
    store, day = Store(Tier.WARM), seals[0].day
    part, name = _free_name(store, day)
    store.sweep(name.rpartition("/")[0])
    with store.drafting(name, token=run.run_id.hex) as draft:
        contents = _fill(draft, seals, run, altered)
        if not contents.seals:
            return None
        draft.read_back()
        made = with_retries(lambda: _note(draft, contents, day, part, name, run))
        draft.is_noted = bool(draft.aside)
        faultpoint("archive.before_rename")
        store.place(draft, name)
    faultpoint("archive.after_rename")
    _mark_written(made, run)
    return made


def _free_name(store: Store, day: date) -> tuple[int, str]:
    """Return the next part of a day; files of a time that a restore undid are not overwritten."""
    newest = AuditArchive.objects.filter(day=day).order_by("-part").first()
    part = newest.part + 1 if newest else 1
    while store.has(name_of(day, part)):
        part += 1
    return part, name_of(day, part)


def name_of(day: date, part: int) -> str:
    """Return the name of a day's file."""
    return f"{day:%Y/%m}/audit-{day:%Y-%m-%d}-{part:03}.jsonl.gz"


def _fill(draft: Draft, seals: list[AuditSeal], run: Run, altered: set[int]) -> Contents:
    contents = Contents()
    with files.writing(draft) as packed:
        for at in range(0, len(seals), SEALS_AT_ONCE):
            some = [it.number for it in seals[at : at + SEALS_AT_ONCE]]
            for seal in AuditSeal.objects.filter(number__in=some).with_spans().order_by("number"):
                if not _add(packed, seal, contents):
                    altered.add(seal.number)
                run.progressed()
    return contents


def _add(packed: gzip.GzipFile, seal: AuditSeal, contents: Contents) -> bool:
    """Write a seal's records, and the seal; False: they are not what they were."""
    spans = seal.ranges()
    rows = list(rows_of(spans))
    made = [line_of(row) for row in rows]
    if digest_of(map(hash_of, made)) != seal.digest or not is_sound(seal, spans):
        logger.error("audit_altered", extra={"seal": seal.number, "day": f"{seal.day}"})
        return False
    packed.writelines([*made, files.seal_line(seal, spans)])
    contents.add(seal, rows)
    return True


@transaction.atomic
def _note(
    draft: Draft, contents: Contents, day: date, part: int, name: str, run: Run
) -> AuditArchive:
    """Store the manifest, before the file is in its place."""
    newest = contents.newest
    assert newest is not None  # noqa: S101 - there are seals
    made = AuditArchive.objects.create(
        name=name,
        day=day,
        part=part,
        aside=draft.aside,
        count=contents.count,
        size=draft.size,
        sha256=draft.sha256,
        first_id=contents.first_id,
        last_id=contents.last_id,
        first_at=contents.first_at,
        last_at=contents.last_at,
        last_seal=newest.number,
        seal_hash=newest.hash,
        terms=terms.filter_of(contents.terms),
    )
    if AuditSeal.objects.filter(number__in=contents.seals).file_under(made) != len(contents.seals):
        raise StoreError("seals of the file are in another one already")
    run.renew_lease()
    return made


def _mark_written(made: AuditArchive, run: Run) -> None:
    """Note that the file is in its place, on the record."""

    @transaction.atomic
    def attempt() -> None:
        if AuditArchive.objects.filter(pk=made.pk).mark_written():
            audit.record(
                actor=run.actor,
                action=ARCHIVED,
                target_type=TARGET,
                target_id=made.name,
                reason=f"AUDIT_HOT_DAYS={settings.AUDIT_HOT_DAYS}",
                before={"status": ArchiveStatus.PLACING, "tier": "hot"},
                after={
                    "status": ArchiveStatus.WRITTEN,
                    "tier": made.tier,
                    "records": made.count,
                    "ids": [made.first_id, made.last_id],
                },
                evidence={"sha256": made.sha256, "seal": made.last_seal, "hash": made.seal_hash},
                run_id=run.run_id,
            )
        run.renew_lease()

    with_retries(attempt)
    made.refresh_from_db()


def _finish(made: AuditArchive, run: Run) -> Iterator[dict[str, int]]:
    """Go on with an archive where somebody stopped."""
    store = Store(made.tier)
    if made.status == ArchiveStatus.PLACING:
        if not _is_placed(made, store):
            with_retries(partial(_forget, made, run))
            return
        _mark_written(made, run)
        yield {"archives_written": 1}
    elif store.hash_of(made.name) != made.sha256:
        raise StoreError(f"{made.name} is not what was written: its records stay in the table")
    yield from _empty(made, run)


def _is_placed(made: AuditArchive, store: Store) -> bool:
    """Put a file in its place that is complete aside; tell whether it is there, and right."""
    place = store.path_of(made.name)
    if place is not None and made.aside:
        aside = place.with_name(made.aside)
        if aside.exists():
            rename(aside, place)
    return store.has(made.name) and store.hash_of(made.name) == made.sha256


@transaction.atomic
def _forget(made: AuditArchive, run: Run) -> None:
    """Drop the manifest of a file that never was: its records are all in the table."""
    AuditSeal.objects.filter(archive=made).take_back()
    made.delete()
    run.renew_lease()


def _empty(made: AuditArchive, run: Run) -> Iterator[dict[str, int]]:
    """Delete the rows that the file has, a few at a time."""
    faultpoint("archive.before_delete")
    size = LEAST_ROWS
    for first, last in _spans(made):
        rows = AuditRecord.objects.filter(pk__range=(first, last)).order_by("pk")
        while ids := list(rows.values_list("pk", flat=True)[:size]):
            started = time.monotonic()
            deleted = with_retries(partial(_delete, made, ids, run.renew_lease))
            took_s = time.monotonic() - started
            size = next_size(size, took_s, least=LEAST_ROWS, most=MOST_ROWS, longest_s=LONGEST_S)
            yield {"records_archived": deleted}
    _mark_done(made, run)


def _spans(made: AuditArchive) -> Iterator[Span]:
    for seal in made.seals.order_by("number").defer("marks", "gaps").with_spans():
        yield from seal.ranges()


@transaction.atomic
def _delete(made: AuditArchive, ids: Sequence[int], last: Callable[[], None]) -> int:
    deleted = AuditRecord.objects.filter(pk__in=ids).leave_for(made)
    last()
    return deleted


def _mark_done(made: AuditArchive, run: Run) -> None:
    @transaction.atomic
    def attempt() -> None:
        AuditArchive.objects.filter(pk=made.pk).mark_done()
        run.renew_lease()

    with_retries(attempt)


def put_away(run: Run) -> Iterator[dict[str, int]]:
    """Move archives past their days to the cold tier; yield counts after each."""
    before = _warm_since(db_now())
    warm, cold = Store(Tier.WARM), Store(Tier.COLD)
    for made in AuditArchive.objects.to_put_away(before).order_by("day", "part"):
        if made.tier == Tier.WARM:
            cold.copy_from(warm, made.name, sha256_hex=made.sha256, token=run.run_id.hex)
            with_retries(partial(_note_cold, made, run))
        elif cold.hash_of(made.name) != made.sha256:
            raise StoreError(f"{made.name} is not what was put away: it stays in both tiers")
        warm.remove(made.name)
        AuditArchive.objects.filter(pk=made.pk).undouble()
        yield {"archives_put_away": 1}


@transaction.atomic
def _note_cold(made: AuditArchive, run: Run) -> None:
    if AuditArchive.objects.filter(pk=made.pk).put_away():
        audit.record(
            actor=run.actor,
            action=ARCHIVED,
            target_type=TARGET,
            target_id=made.name,
            reason=f"AUDIT_WARM_DAYS={settings.AUDIT_WARM_DAYS}",
            before={"tier": Tier.WARM},
            after={"tier": Tier.COLD},
            evidence={"sha256": made.sha256},
            run_id=run.run_id,
        )
    run.renew_lease()
