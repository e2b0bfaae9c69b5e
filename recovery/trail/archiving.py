"""Move sealed records to archives: nothing is deleted that was not read back from its file."""

import gzip
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Count, Q, Sum

from recovery import audit, stopping
from recovery.clock import db_now
from recovery.errors import is_infrastructure, with_retries
from recovery.faultpoints import faultpoint
from recovery.leases import LeaseLostError
from recovery.models import ArchiveStatus, AuditArchive, AuditRecord, AuditSeal, Tier
from recovery.models.seals import Span
from recovery.pacing import next_size
from recovery.runner import Run
from recovery.trail import files
from recovery.trail.contents import Contents
from recovery.trail.lines import COLUMNS, digest_of, hash_of, line_of, rows_of
from recovery.trail.seals import is_sound
from recovery.trail.stores import ASIDE, Draft, Store, StoreError, rename

logger = logging.getLogger(__name__)

ARCHIVED = "audit-archived"
TARGET = "audit-archive"
PART_RECORDS = 50_000
PART_BYTES = 64 << 20
"""So many records a file has, and so long lines, or by those of one seal more.

A search holds what fits of a file.
"""
LEAST_ROWS, MOST_ROWS = 20, 999
LONGEST_S = 0.2
SEALS_AT_ONCE = 20
IN_A_ROW = 3
"""After so many files in a row that could not be written no other one is tried."""
LONGEST_LOOK_S = 60
TOKEN_CHARS = 8
Steps = Iterator[dict[str, int]]


class AlteredRecordsError(Exception):
    """Records are not what they were when they were sealed: they stay where they are."""


def archive(run: Run, troubles: list[Exception]) -> Steps:
    """Finish what was begun, archive what is past its days, put old files away.

    Yields counts after each commit. What goes wrong with one file keeps no other one from its end:
    it is added to ``troubles``.
    """
    for unfinished in AuditArchive.objects.unfinished().order_by("day", "part"):
        yield from _collecting(troubles, _finish(unfinished, run))
    yield from _write_due(run, troubles)
    yield from put_away(run, troubles)


def _collecting(troubles: list[Exception], steps: Steps) -> Steps:
    """Take steps about one file; what goes wrong with it is a trouble, not the end of the run."""
    try:
        yield from steps
    except LeaseLostError:
        raise
    except Exception as error:
        if is_infrastructure(error):
            raise
        logger.warning("archive_stopped", extra={"error": f"{type(error).__name__}: {error}"})
        troubles.append(error)


def _write_due(run: Run, troubles: list[Exception]) -> Steps:
    before = _hot_since(db_now())
    altered: list[int] = []
    last: tuple[date, int] | None = None
    failed = 0
    # What was altered is looked at again by each run, and must not take all of its time.
    while failed < IN_A_ROW and (seals := _next_seals(before, last)):
        if altered and (stopping.asked() or run.duration_s > LONGEST_LOOK_S):
            break
        last, known = (seals[-1].day, seals[-1].number), len(troubles)
        yield from _collecting(troubles, _write_one(seals, run, altered))
        failed = failed + 1 if len(troubles) > known else 0
    if altered:
        names = ", ".join(map(str, altered[:10]))
        error = AlteredRecordsError(
            f"{AlteredRecordsError.__doc__} audit verify names them (seals {names})"
        )
        troubles.append(error)


def _write_one(seals: list[AuditSeal], run: Run, altered: list[int]) -> Steps:
    made = _write(seals, run, altered)
    if made is not None:
        yield {"archives_written": 1}
        yield from _empty(made, run)


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


def _next_seals(before: date, last: tuple[date, int] | None) -> list[AuditSeal]:
    """Return the seals that the next file gets: of one day, in their order, behind the last one."""
    due = due_seals(before).defer("marks", "gaps")
    if last is not None:
        day, number = last
        due = due.filter(Q(day__gt=day) | Q(day=day, number__gt=number))
    first = due.first()
    if first is None:
        return []
    taken, count, size = [], 0, 0
    for seal in due.filter(day=first.day).iterator(chunk_size=100):
        taken.append(seal)
        count, size = count + seal.count, size + seal.size
        if count >= PART_RECORDS or size >= PART_BYTES:
            break
    return taken


def _write(seals: list[AuditSeal], run: Run, altered: list[int]) -> AuditArchive | None:
    """Write a file with the records of ``seals``; None: all of them were altered."""
    store, day = Store(Tier.WARM), seals[0].day
    store.require_its_archives()
    part = _next_part(day)
    name = name_of(day, part, run.run_id.hex[:TOKEN_CHARS])
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


def _next_part(day: date) -> int:
    newest = AuditArchive.objects.filter(day=day).order_by("-part").first()
    return newest.part + 1 if newest else 1


def name_of(day: date, part: int, token: str) -> str:
    """Return the name of a file of a day; its run's token is in it, so that it is written once.

    A writer that was given up, or is of a time that a restore of the database undid, cannot
    overwrite what came after it.
    """
    return f"{day:%Y/%m}/audit-{day:%Y-%m-%d}-{part:03}-{token}.jsonl.gz"


def _fill(draft: Draft, seals: list[AuditSeal], run: Run, altered: list[int]) -> Contents:
    contents = Contents()
    with files.writing(draft) as packed:
        for at in range(0, len(seals), SEALS_AT_ONCE):
            some = [it.number for it in seals[at : at + SEALS_AT_ONCE]]
            numbered = AuditSeal.objects.filter(number__in=some).defer("marks", "gaps")
            for seal in numbered.with_spans().order_by("number"):
                if not _add(packed, seal, contents):
                    altered.append(seal.number)
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
    contents.seals.append(seal.number)
    for row in rows:
        contents.add(AuditRecord(**dict(zip(COLUMNS, row, strict=True))))
    return True


@transaction.atomic
def _note(
    draft: Draft, contents: Contents, day: date, part: int, name: str, run: Run
) -> AuditArchive:
    """Store the manifest, before the file is in its place."""
    newest = AuditSeal.objects.only("number", "hash").get(pk=max(contents.seals))
    made = AuditArchive.objects.create(
        name=name,
        day=day,
        part=part,
        aside=draft.aside,
        size=draft.size,
        sha256=draft.sha256,
        last_seal=newest.number,
        seal_hash=newest.hash,
        **contents.manifest(),
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


def _finish(made: AuditArchive, run: Run) -> Steps:
    """Go on with an archive where somebody stopped."""
    store = Store(made.tier)
    if made.status == ArchiveStatus.PLACING:
        if not _is_placed(made, store):
            _forget(made, run)
            return
        _mark_written(made, run)
        yield {"archives_written": 1}
    elif store.hash_of(made.name) != made.sha256:
        raise StoreError(f"{made.name} is not what was written: its records stay in the table")
    yield from _empty(made, run)


def _is_placed(made: AuditArchive, store: Store) -> bool:
    """Put a file in its place that is complete aside; tell whether it is there, and right."""
    place = store.path_of(made.name)
    if place is not None and not place.exists():
        aside = place.with_name(made.aside) if _is_aside(made.aside, place.name) else None
        if aside is not None and aside.exists() and store.hash_at(aside) == made.sha256:
            rename(aside, place)
    return store.has(made.name) and store.hash_of(made.name) == made.sha256


def _is_aside(aside: str, name: str) -> bool:
    """Tell whether it is what a draft of ``name`` is called: the database's word is not enough."""
    return aside.startswith(f".{name}.") and aside.endswith(ASIDE) and "/" not in aside


def _forget(made: AuditArchive, run: Run) -> None:
    """Drop the manifest of a file that never was: its records are all in the table."""
    pk = made.pk

    @transaction.atomic
    def attempt() -> None:
        AuditSeal.objects.filter(archive_id=pk).take_back()
        AuditArchive.objects.filter(pk=pk).delete()
        run.renew_lease()

    with_retries(attempt)


def _empty(made: AuditArchive, run: Run) -> Steps:
    """Delete the rows that the file has, a few at a time."""
    faultpoint("archive.before_delete")
    size, ids = LEAST_ROWS, _ids(_spans(made))
    while some := list(islice(ids, size)):
        there = list(AuditRecord.objects.filter(pk__in=some).values_list("pk", flat=True))
        if not there:
            size = min(MOST_ROWS, 2 * size)  # an earlier run deleted them
            continue
        started = time.monotonic()
        deleted = with_retries(partial(_delete, made, there, run.renew_lease))
        took_s = time.monotonic() - started
        size = next_size(size, took_s, least=LEAST_ROWS, most=MOST_ROWS, longest_s=LONGEST_S)
        yield {"records_archived": deleted}
    _mark_done(made, run)


def _ids(spans: Iterable[Span]) -> Iterator[int]:
    for first, last in spans:
        yield from range(first, last + 1)


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


def put_away(run: Run, troubles: list[Exception]) -> Steps:
    """Move archives past their days to the cold tier; yield counts after each."""
    for made in AuditArchive.objects.to_put_away(_warm_since(db_now())).order_by("day", "part"):
        yield from _collecting(troubles, _put_one_away(made, run))


def _put_one_away(made: AuditArchive, run: Run) -> Steps:
    warm, cold = Store(Tier.WARM), Store(Tier.COLD)
    if cold.is_at(warm, made.name):
        raise StoreError(f"AUDIT_ARCHIVE and AUDIT_COLD are one place: {made.name} would be gone")
    cold.sweep(made.name.rpartition("/")[0])
    # A database of before the move, brought back, says warm of what is cold alone.
    is_there = made.tier == Tier.COLD or (not warm.has(made.name) and cold.has(made.name))
    if not is_there:
        cold.require_its_archives()
        cold.copy_from(warm, made.name, sha256_hex=made.sha256, token=run.run_id.hex)
    if cold.hash_of(made.name) != made.sha256:
        raise StoreError(f"{made.name} is not what was put away: it stays where it is")
    if made.tier == Tier.WARM:
        with_retries(partial(_note_cold, made, run))
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
