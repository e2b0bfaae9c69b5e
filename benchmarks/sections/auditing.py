"""Audit records sealed and archived a second, beside the bare driver; and found again."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings
from django.core.files.storage import storages
from django.test.utils import override_settings

from benchmarks import auditfloor, database
from benchmarks.manyrows import Sql, store, text
from benchmarks.options import Options
from benchmarks.report import Row, Table, at_least, at_most, interleaved, ratio
from recovery import runner
from recovery.models import AuditArchive, AuditRecord, AuditSeal
from recovery.search import Search, archived_of, find
from recovery.trail import guards, verifying

DAYS, YOUNGEST = 200, 120
DRIVER = "bare driver: read, pack, delete"
READER = "bare driver: read"
SEALED, ARCHIVED, VERIFIED = "sealed", "archived, with seals proven and triggers", "verified"
TARGETS = 1_000


def measure(options: Options) -> Table:
    """Move records of 200 days, by either; then look for one target in what was archived."""
    count, rounds = options.records, max(1, options.rounds // 2)
    searches: list[float] = []
    with _folders():
        found = interleaved(
            {
                READER: lambda: _rate(count, _read),
                SEALED: lambda: _rate(count, _seal),
                DRIVER: lambda: _rate(count, _by_driver, guards.take_down),
                ARCHIVED: lambda: _archived(count, searches),
                VERIFIED: lambda: _rate(count, _verify, _archive_all),
            },
            rounds,
        )
    title = f"audit records a second ({rounds} rounds of {count:,}, {DAYS} days)"
    table = Table("audit", title, "/s", floor="the bare driver")
    floors = {SEALED: READER, VERIFIED: READER, ARCHIVED: DRIVER}
    table.rows = [
        Row(name, samples, found[floors.get(name, name)]) for name, samples in found.items()
    ]
    table.bars = [
        at_least("archived: at least 0.04 of it", ratio(found[ARCHIVED], found[DRIVER]), 0.04),
        at_least("sealed: at least 0.03 of reading", ratio(found[SEALED], found[READER]), 0.03),
        at_most(f"seconds to find a target in {DAYS} files, the worst", max(searches), 5),
    ]
    table.notes = ["verified: what is archived, all of it, with the chain and its signatures"]
    return table


@contextmanager
def _folders() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="bench-audit-") as folder:
        stores = {
            **settings.STORAGES,
            "audit_archive": {
                **settings.STORAGES["audit_archive"],
                "OPTIONS": {"location": folder},
            },
        }
        with override_settings(STORAGES=stores, JOB_TIME_BUDGET_SEC=3_600):
            yield


def _fill(count: int) -> None:
    guards.take_down()
    database.empty()
    guards.put_up()
    _forget_files()
    every_s = DAYS * 86_400 / count
    begin = f"TIMESTAMPADD(DAY, -{DAYS + YOUNGEST}, UTC_TIMESTAMP(6))"
    store(
        AuditRecord,
        count,
        at=Sql(f"TIMESTAMPADD(SECOND, n * {every_s}, {begin})"),
        actor=text("cli:{n % 50}"),
        action=text("split-order-{n % 7}"),
        target_type="split-order",
        target_id=text(f"SO-{{n % {TARGETS}}}"),
        reason=text("because of {n}, as was told by the people of the night shift"),
        before={"status": "failed", "attempts": 5},
        after={"status": "ready", "attempts": 0},
        evidence={"held_by": None, "checked": ["lock", "lease", "heartbeat"], "epoch": 7},
    )


def _forget_files() -> None:
    place = Path(storages["audit_archive"].path(""))
    for path in place.rglob("*.gz"):
        path.unlink()


def _rate(count: int, action: Callable[[], int], ready: Callable[[], object] = int) -> float:
    """Return how many records a second ``action`` takes, once ``ready`` was called."""
    _fill(count)
    ready()
    started = time.perf_counter()
    done = action()
    took_s = time.perf_counter() - started
    assert done >= count, f"{done} of {count} records"
    return count / took_s


def _read() -> int:
    return auditfloor.read(settings.DATABASE_URL)


def _by_driver() -> int:
    with tempfile.NamedTemporaryFile(suffix=".gz") as file:
        return auditfloor.archive(settings.DATABASE_URL, Path(file.name))


def _seal() -> int:
    _run("auditSeal")
    return sum(AuditSeal.objects.values_list("count", flat=True))


def _verify() -> int:
    done = verifying.verify()
    assert not done.findings, done.findings[0]
    return done.records


def _archived(count: int, searches: list[float]) -> float:
    """Return the rate of archiving; then look for a target, as often as there are rounds."""
    _fill(count)
    _run("auditSeal")
    started = time.perf_counter()
    _run("auditArchive")
    took_s = time.perf_counter() - started
    assert AuditArchive.objects.done().count() >= DAYS
    assert not AuditRecord.objects.filter(target_type="split-order").exists()
    started = time.perf_counter()
    wanted = Search(target="split-order/SO-7")
    assert len(list(find(wanted, archived_of(wanted)))) == count // TARGETS
    searches.append(time.perf_counter() - started)
    return count / took_s


def _archive_all() -> None:
    _run("auditSeal")
    _run("auditArchive")


def _run(job: str) -> None:
    outcome = runner.run_job(job)
    assert outcome.status == "ok", outcome.reason
