"""Audit records for tests of the trail: of so many days ago, sealed, archived, tampered with."""

import gzip
import json
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from recovery import runner
from recovery.clock import db_now
from recovery.models import AuditArchive, AuditRecord, AuditSeal
from recovery.trail.lines import COLUMNS, line_of
from recovery.trail.verifying import Kept, Verification, verify

SEAL, ARCHIVE = "auditSeal", "auditArchive"


def written(count: int = 1, *, days_ago: float = 0, **more: Any) -> list[int]:
    """Store records of so many days ago; return their ids."""
    at = db_now() - timedelta(days=days_ago)
    facts = {
        "actor": "cli:ann",
        "action": "job-paused",
        "target_type": "job",
        "target_id": "x",
        "before": {"b": 1, "a": [1.5, None, "木"]},
        **more,
    }
    made = [AuditRecord(at=at, **facts) for _ in range(count)]
    with transaction.atomic():
        for record in made:
            record.save()
    return [record.pk for record in made]


def sealed(count: int = 1, **more: Any) -> list[int]:
    """Store records and seal them; return their ids."""
    ids = written(count, **more)
    assert ran(SEAL).status == "ok"
    return ids


def archived(count: int = 1, *, days_ago: float = 100, **more: Any) -> list[int]:
    """Store, seal and archive records; return their ids."""
    ids = sealed(count, days_ago=days_ago, **more)
    outcome = ran(ARCHIVE)
    assert outcome.status == "ok", outcome.reason
    return ids


def ran(job: str) -> runner.Outcome:
    """Run a job until nothing is left to do; return the last outcome."""
    while True:
        outcome = runner.run_job(job)
        if outcome.status != "ok" or not outcome.again:
            return outcome


def lines_in_table() -> dict[int, bytes]:
    """Return the line of each record of the table."""
    rows = AuditRecord.objects.values_list(*COLUMNS)
    return {row[0]: line_of(row) for row in rows}


def path_of(archive: AuditArchive) -> Path:
    """Return where an archive's file is."""
    alias = {"warm": "audit_archive", "cold": "audit_cold"}[archive.tier]
    return Path(settings.STORAGES[alias]["OPTIONS"]["location"], archive.name)


def unpacked(archive: AuditArchive) -> list[bytes]:
    """Return all lines of an archive's file, with their ends."""
    return gzip.decompress(path_of(archive).read_bytes()).splitlines(keepends=True)


def lines_in_archives() -> list[bytes]:
    """Return the lines of records in all archives, doubles too."""
    archives = AuditArchive.objects.placed()
    return [it for one in archives for it in unpacked(one) if not it.startswith(b'{"seal"')]


def everything(ids: Iterable[int]) -> list[bytes]:
    """Return the lines of these records in table and files; each must be there once."""
    archived = lines_in_archives()
    at = {json.loads(line)["id"]: line for line in archived}
    assert len(at) == len(archived)
    hot = lines_in_table()
    assert not set(at) & set(hot)
    return [(at | hot)[pk] for pk in ids]


def repacked(archive: AuditArchive, lines: list[bytes]) -> None:
    """Write an archive's file anew with other lines."""
    path_of(archive).write_bytes(gzip.compress(b"".join(lines), mtime=0))


def run_sql(text: str, *parameters: Any) -> None:
    """Do what no code of ours does."""
    with connection.cursor() as cursor:
        cursor.execute(text, parameters)


def found(kept: Kept | None = None) -> list[tuple[str, int | None]]:
    """Return what a verification finds: what, and of which record."""
    return [(it.what, it.record) for it in done(kept).findings]


def done(kept: Kept | None = None) -> Verification:
    """Return a verification of all there is."""
    return verify(kept)


def newest() -> AuditSeal:
    """Return the newest seal."""
    seal = AuditSeal.objects.newest()
    assert seal is not None
    return seal
