"""The archiver killed, out of disk, beside writers at full speed: nothing lost, nothing twice."""

import copy
import json
import secrets
import subprocess
import threading
from pathlib import Path

import pytest
from django.db import DatabaseError, connection

from recovery.models import AuditArchive, AuditRecord, JobRun
from tests.recovery.trail.records import (
    ARCHIVE,
    SEAL,
    done,
    lines_in_archives,
    lines_in_table,
    ran,
    sealed,
    written,
)
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("no_redis")]

SHORT = {"JOB_LOCK_TTL_SEC": "2", "SPLIT_COMPLETION_TIMEOUT_SEC": "1"}
POINTS = ("archive.before_rename", "archive.after_rename", "archive.before_delete")


@pytest.fixture
def place(settings, tmp_path):
    """Keep archives in a folder of the test; return the environment that says so."""
    stores = copy.deepcopy(settings.STORAGES)
    for alias, name in (("audit_archive", "warm"), ("audit_cold", "cold")):
        stores[alias]["OPTIONS"]["location"] = str(tmp_path / name)
    settings.STORAGES = stores
    return {"AUDIT_ARCHIVE": str(tmp_path / "warm"), "AUDIT_COLD": str(tmp_path / "cold")}


def assert_complete(before):
    """Assert that each record is in the table or in a file, once, and as it was."""
    filed = {json.loads(line)["id"]: line for line in lines_in_archives()}
    assert len(filed) == len(lines_in_archives())
    hot = lines_in_table()
    ended = set(AuditArchive.objects.done().values_list("pk", flat=True))
    if len(ended) == AuditArchive.objects.count():
        assert not set(filed) & set(hot)
    assert {pk: (filed | hot)[pk] for pk in before} == before
    assert done().findings == []


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("action", ["crash", "raise"])
def test_archiver_that_dies_at_a_fault_point_is_ended_by_the_next_run(manage, place, point, action):
    for days in (100, 102, 104):  # also where midnight passes between them
        sealed(5, days_ago=days)
    before = lines_in_table()
    fault = {"RECOVERY_FAULTPOINTS": f"{point}={action}@2"}
    broken = manage("run_job", ARCHIVE, env=place | SHORT | fault)
    assert broken.returncode == (1 if action == "raise" else -9), broken.stderr
    assert 1 <= AuditArchive.objects.count() <= 3
    assert_complete(before)
    eventually(lambda: ran(ARCHIVE).status == "ok")
    assert AuditArchive.objects.done().count() == 3
    assert set(lines_in_table()).isdisjoint(before)
    assert_complete(before)
    assert not list(_asides(place))


def _asides(place):
    return Path(place["AUDIT_ARCHIVE"]).rglob("*.part")


@pytest.mark.parametrize("after_rows", [1, 3, 5])
def test_archiver_killed_while_it_deletes_is_ended_by_the_next_run(manage, place, after_rows):
    """SIGKILL at any moment: here as soon as so many hundreds of rows are gone."""
    sealed(2_000, days_ago=100)
    before = lines_in_table()
    started = manage.start("run_job", ARCHIVE, env=place | SHORT)
    eventually(
        lambda: (
            AuditRecord.objects.filter(pk__in=before).count() <= 2_000 - 100 * after_rows
            or started.has_ended()
        )
    )
    started.process.kill()
    started.process.wait()
    assert_complete(before)
    eventually(lambda: ran(ARCHIVE).status == "ok")
    assert AuditArchive.objects.done().count() == 1
    assert_complete(before)


@pytest.fixture
def small_disk(tmp_path, settings, place):
    """Put the archives on a disk of 256 KiB."""
    disk = tmp_path / "warm"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk_leaves_every_row_and_no_half_file(small_disk, place):
    ballast = small_disk / "ballast"
    for _ in range(40):  # what cannot be made smaller
        written(days_ago=100, reason=secrets.token_hex(500))
    ran(SEAL)
    before = lines_in_table()
    ballast.write_bytes(b"\0" * 240 * 1024)
    outcome = ran(ARCHIVE)
    assert (outcome.status, "No space left" in outcome.reason) == ("failed", True)
    assert not AuditArchive.objects.exists()
    assert lines_in_table().keys() >= before.keys()
    assert not [it for it in small_disk.rglob("*") if it.is_file() and it != ballast]
    assert_complete(before)
    ballast.unlink()
    assert ran(ARCHIVE).status == "ok"
    assert set(lines_in_table()).isdisjoint(before)
    assert_complete(before)


def test_full_disk_keeps_nothing_else_from_its_retention(small_disk, place):
    """Who cleans the tables when the archive's disk is full? The same job, all the same."""
    (small_disk / "ballast").write_bytes(b"\0" * 256 * 1024)
    sealed(50, days_ago=100)
    run = JobRun.objects.order_by("id").first()
    JobRun.objects.filter(pk=run.pk).update(started_at="2020-01-01T00:00Z")
    assert ran(ARCHIVE).status == "failed"
    assert not JobRun.objects.filter(pk=run.pk).exists()


@pytest.mark.mariadb
def test_no_writer_waits_a_second_for_a_lock_while_rows_are_archived(place):
    """MariaDB itself ends a statement that waits longer, and with it the thread."""
    sealed(3_000, days_ago=100)
    stop, counts, troubles = threading.Event(), [0, 0, 0], []

    def write(number):
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET innodb_lock_wait_timeout = 1")
                while not stop.is_set():
                    cursor.execute(
                        "INSERT INTO recovery_auditrecord (actor, action, target_type, target_id,"
                        " reason, `before`, `after`, evidence)"
                        " VALUES ('a', 'busy', 't', 'x', '', '{}', '{}', '{}')"
                    )
                    counts[number] += 1
        except DatabaseError as error:
            troubles.append(error)
        finally:
            connection.close()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    try:
        eventually(lambda: min(counts) > 10)
        assert ran(ARCHIVE).status == "ok"
        seen = min(counts)
        assert ran(SEAL).status == "ok"
        eventually(lambda: min(counts) > seen or troubles)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert troubles == []
    assert ran(SEAL).status == "ok"
    assert AuditRecord.objects.filter(action="busy").count() == sum(counts)
    assert done().findings == []
