"""Old records move to files, day by day; nothing is deleted that was not read back."""

import io
import json
import os
import random
import re
from datetime import date, timedelta

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.core.management import call_command
from django.db import connection

from recovery import runner
from recovery.clock import db_now
from recovery.models import (
    AppendOnlyError,
    ArchiveStatus,
    AuditArchive,
    AuditRecord,
    AuditSeal,
    Job,
    JobRun,
    Tier,
)
from recovery.search import Search, archived_of, find
from recovery.trail import archiving, stores
from recovery.trail.lines import digest_of, hash_of
from recovery.trail.stores import ASIDE, Store
from tests.logs import kept
from tests.recovery.engine import in_thread
from tests.recovery.trail.records import (
    ARCHIVE,
    SEAL,
    archived,
    done,
    everything,
    found,
    lines_in_archives,
    lines_in_table,
    path_of,
    ran,
    repacked,
    run_sql,
    sealed,
    unpacked,
    written,
)

pytestmark = pytest.mark.django_db(transaction=True)


def all_ids():
    """Return the ids of what is in table and files."""
    return {json.loads(it)["id"] for it in lines_in_archives()} | set(lines_in_table())


def test_records_past_their_days_move_and_younger_ones_stay(settings):
    settings.AUDIT_HOT_DAYS = 90
    old, young = written(3, days_ago=91.01), written(3, days_ago=89.9)
    before = lines_in_table()
    ran(SEAL)
    outcome = ran(ARCHIVE)
    assert outcome.result["records_archived"] == 3
    assert set(lines_in_table()) >= set(young)
    assert not set(lines_in_table()) & set(old)
    assert lines_in_archives() == [before[pk] for pk in old]
    assert found() == []


def test_record_that_is_not_sealed_stays():
    (pk,) = written(days_ago=1_000)
    assert ran(ARCHIVE).result == {}
    assert AuditRecord.objects.filter(pk=pk).exists()


def test_manifest_says_what_is_in_the_file():
    old = archived(2, days_ago=100)
    archive = AuditArchive.objects.get()
    day = (db_now() - timedelta(days=100)).date()
    assert re.fullmatch(rf"{day:%Y/%m}/audit-{day}-001-[0-9a-f]{{8}}\.jsonl\.gz", archive.name)
    assert (archive.status, archive.tier, archive.day) == ("done", "warm", day)
    assert (archive.count, archive.first_id, archive.last_id) == (2, *old)
    assert archive.first_at.date() == archive.last_at.date() == day
    seal = AuditSeal.objects.get(archive=archive)
    assert (archive.last_seal, archive.seal_hash) == (seal.number, seal.hash)
    data = path_of(archive).read_bytes()
    assert archive.size == len(data)
    assert Store(Tier.WARM).hash_of(archive.name) == archive.sha256
    assert path_of(archive).stat().st_mode & 0o777 == 0o640


def test_archiving_is_on_the_record_with_its_run():
    archived()
    archive = AuditArchive.objects.get()
    record = AuditRecord.objects.get(action="audit-archived")
    assert (record.actor, record.target_type) == ("system:auditArchive", "audit-archive")
    assert record.target_id == archive.name
    assert record.evidence["sha256"] == archive.sha256
    assert record.run_id == JobRun.objects.filter(job_id=ARCHIVE).latest("id").run_id


def test_each_day_has_a_file_and_a_large_one_has_parts(monkeypatch):
    monkeypatch.setattr(archiving, "PART_RECORDS", 4)
    ids = [pk for _ in range(3) for pk in sealed(3, days_ago=200)] + sealed(2, days_ago=150)
    before = lines_in_table()
    ran(ARCHIVE)
    archives = AuditArchive.objects.order_by("day", "part")
    assert [(it.part, it.count) for it in archives] == [(1, 6), (2, 3), (1, 2)]
    assert everything(ids) == [before[pk] for pk in ids]
    assert found() == []


def test_late_record_of_a_day_that_has_its_file_gets_another_part():
    first = archived(days_ago=100)
    second = archived(days_ago=100)
    assert [it.part for it in AuditArchive.objects.order_by("part")] == [1, 2]
    assert len(everything(first + second)) == 2


def test_run_that_is_over_goes_on_in_the_next_one(settings):
    settings.JOB_TIME_BUDGET_SEC = 0
    ids = written(60, days_ago=100)
    runner.run_job(SEAL)
    outcomes = []
    while not outcomes or outcomes[-1].again:
        outcomes.append(runner.run_job(ARCHIVE))
        assert all_ids() >= set(ids)
    assert len(outcomes) > 3
    assert {it.status for it in outcomes} == {"ok"}
    assert len(everything(ids)) == 60
    assert found() == []


def test_lost_lease_archives_nothing(monkeypatch):
    ids = sealed(3, days_ago=100)

    def lost(_self):
        raise runner.leases.LeaseLostError

    monkeypatch.setattr(runner.Run, "renew_lease", lost)
    assert runner.run_job(ARCHIVE).status == "failed"
    assert not AuditArchive.objects.exists()
    assert set(lines_in_table()) == set(ids)
    assert AuditSeal.objects.hot().count() == 1


def test_altered_records_stay_and_the_others_go():
    """An archive would make what was altered look as if it had always been so."""
    bad, good = sealed(2, days_ago=100), sealed(2, days_ago=100)
    run_sql("UPDATE recovery_auditrecord SET actor = 'eve' WHERE id = %s", bad[0])
    with kept() as records:
        outcome = ran(ARCHIVE)
    assert (outcome.status, "seals 1" in outcome.reason) == ("failed", True)
    assert [it["seal"] for it in records if it["event"] == "audit_altered"] == [1]
    assert set(bad) <= set(lines_in_table())
    assert not set(good) & set(lines_in_table())
    assert found() == [("changed", bad[0])]


def test_seal_that_was_made_to_fit_altered_records_archives_nothing():
    (pk,) = sealed(days_ago=100)
    run_sql("UPDATE recovery_auditrecord SET actor = 'eve' WHERE id = %s", pk)
    AuditSeal.objects.update(digest=digest_of([hash_of(lines_in_table()[pk])]))
    assert ran(ARCHIVE).status == "failed"
    assert not AuditArchive.objects.exists()


def test_file_of_a_time_that_a_restore_undid_is_not_overwritten():
    archived(days_ago=100)
    first = AuditArchive.objects.get()
    kept_bytes = path_of(first).read_bytes()
    AuditSeal.objects.all().delete()
    AuditArchive.objects.all().delete()
    archived(days_ago=100)
    assert path_of(first).read_bytes() == kept_bytes
    assert len(list(path_of(first).parent.glob("*.gz"))) == 2


def test_late_writer_that_was_given_up_overwrites_nothing(monkeypatch):
    """A hangs before its file is in place, B gives it up and makes its own, A goes on."""
    first = sealed(2, days_ago=100)
    place = Store.place
    ids = []

    def hang(store, draft, name):
        monkeypatch.setattr(Store, "place", place)
        moved = draft.path.rename(draft.path.with_suffix(".hung"))
        ids.extend(sealed(2, days_ago=100))
        Job.objects.filter(name=ARCHIVE).update(lease_owner="", lease_expires_at=None)
        assert in_thread(lambda: ran(ARCHIVE)).status == "ok"
        moved.rename(draft.path)
        place(store, draft, name)

    monkeypatch.setattr(Store, "place", hang)
    runner.run_job(ARCHIVE)
    assert ran(ARCHIVE).status == "ok"
    assert len(everything([*first, *ids])) == 4
    assert found() == []


def test_folder_that_is_not_mounted_takes_no_archive(folders):
    archived(2, days_ago=100)
    ids = sealed(2, days_ago=100)
    (folders / "warm").rename(folders / "elsewhere")
    outcome = ran(ARCHIVE)
    assert (outcome.status, "is it mounted?" in outcome.reason) == ("failed", True)
    assert set(ids) <= set(lines_in_table())
    (folders / "elsewhere").rename(folders / "warm")
    assert ran(ARCHIVE).status == "ok"
    assert not set(ids) & set(lines_in_table())


def test_manifest_that_names_another_file_as_its_draft_renames_nothing():
    archived(2, days_ago=101)
    archived(2, days_ago=100)
    first, second = AuditArchive.objects.order_by("day")
    name = path_of(second).name
    AuditArchive.objects.filter(pk=first.pk).update(status="placing", aside=f"../{name}")
    path_of(first).rename(path_of(first).with_suffix(".away"))
    ran(ARCHIVE)
    assert path_of(second).exists()
    AuditArchive.objects.filter(pk=second.pk).update(name="../../x", status="placing")
    outcome = ran(ARCHIVE)
    assert outcome.status == "failed"
    assert "StoreError" in outcome.reason


def test_one_bad_file_keeps_no_other_from_being_put_away(settings):
    settings.AUDIT_WARM_DAYS = 300
    for days in (190, 180, 170):
        archived(days_ago=days)
    oldest = AuditArchive.objects.order_by("day").first()
    path_of(oldest).write_bytes(b"nothing")
    settings.AUDIT_WARM_DAYS = 100
    assert ran(ARCHIVE).status == "failed"
    tiers = AuditArchive.objects.order_by("day").values_list("tier", flat=True)
    assert list(tiers) == ["warm", "cold", "cold"]


def test_one_folder_that_cannot_be_written_keeps_no_other_day():
    sealed(days_ago=160)
    sealed(days_ago=100)
    day = (db_now() - timedelta(days=160)).date()
    month = Store(Tier.WARM).path_of(f"{day:%Y/%m}")
    month.parent.mkdir(parents=True, exist_ok=True)
    month.write_bytes(b"a file where a folder should be")
    assert ran(ARCHIVE).status == "failed"
    assert AuditArchive.objects.done().count() == 1
    month.unlink()
    assert ran(ARCHIVE).status == "ok"
    assert AuditArchive.objects.done().count() == 2


def test_seal_of_a_key_that_is_unknown_archives_nothing(settings):
    settings.AUDIT_SEAL_KEYS = ["o" * 40]
    (pk,) = sealed(days_ago=100)
    settings.AUDIT_SEAL_KEYS = []
    assert ran(ARCHIVE).status == "failed"
    assert set(lines_in_table()) == {pk}


def test_backup_of_before_a_move_is_no_alarm_for_ever(settings):
    archived(days_ago=190)
    archive = AuditArchive.objects.get()
    settings.AUDIT_WARM_DAYS = 100
    ran(ARCHIVE)
    AuditArchive.objects.update(tier="warm", cold_at=None)
    assert found() == []
    assert ran(ARCHIVE).status == "ok"
    archive.refresh_from_db()
    assert archive.tier == "cold"


def test_run_that_is_over_counts_what_went_wrong_and_the_last_one_fails(settings):
    sealed(days_ago=160)
    for days in (100, 101):
        sealed(30, days_ago=days)
    run_sql(
        "UPDATE recovery_auditrecord SET actor = 'eve' ORDER BY id LIMIT 1"
        if connection.vendor == "mysql"
        else "UPDATE recovery_auditrecord SET actor = 'eve' WHERE id ="
        " (SELECT MIN(id) FROM recovery_auditrecord)"
    )
    settings.JOB_TIME_BUDGET_SEC = 0
    outcomes = []
    while not outcomes or outcomes[-1].again:
        outcomes.append(runner.run_job(ARCHIVE))
    assert outcomes[-1].status == "failed"
    assert AuditArchive.objects.done().count() == 2


def test_records_leave_for_an_archive_that_was_read_back_and_in_no_other_way():
    archive = AuditArchive(status=ArchiveStatus.PLACING)
    (pk,) = written()
    with pytest.raises(AppendOnlyError):
        AuditRecord.objects.filter(pk=pk).leave_for(archive)
    with pytest.raises(AppendOnlyError):
        AuditRecord.objects.all().delete()


def test_old_files_are_put_away_and_stay_readable(settings):
    settings.AUDIT_WARM_DAYS = 200
    old = archived(2, days_ago=201.5)
    young = archived(2, days_ago=199)
    ran(ARCHIVE)
    cold, warm = AuditArchive.objects.order_by("day")
    assert (cold.tier, warm.tier, cold.is_doubled) == ("cold", "warm", False)
    assert path_of(cold).exists()
    assert not Store(Tier.WARM).has(cold.name)
    assert path_of(warm).exists()
    assert len(everything(old + young)) == 4
    assert found() == []
    record = AuditRecord.objects.filter(action="audit-archived", target_id=cold.name).first()
    assert (record.before, record.after) == ({"tier": "warm"}, {"tier": "cold"})


def test_damaged_file_is_not_put_away(settings):
    settings.AUDIT_WARM_DAYS = 200
    archived(days_ago=190)
    settings.AUDIT_WARM_DAYS = 100
    archive = AuditArchive.objects.get()
    repacked(archive, unpacked(archive)[1:])
    outcome = ran(ARCHIVE)
    assert (outcome.status, "is not what it was" in outcome.reason) == ("failed", True)
    archive.refresh_from_db()
    assert (archive.tier, path_of(archive).exists()) == ("warm", True)
    assert not Store(Tier.COLD).has(archive.name)


def test_folder_that_is_mounted_twice_loses_no_file(settings, folders):
    (folders / "warm").mkdir()
    (folders / "cold").symlink_to(folders / "warm")
    settings.AUDIT_WARM_DAYS = 150
    ids = sealed(2, days_ago=200)
    outcome = ran(ARCHIVE)
    assert (outcome.status, "are one place" in outcome.reason) == ("failed", True)
    assert found() == []
    assert len(everything(ids)) == 2


def test_what_was_abandoned_aside_in_the_cold_tier_is_swept(settings):
    archived(days_ago=200)
    place = Store(Tier.COLD).path_of(AuditArchive.objects.get().name)
    place.parent.mkdir(parents=True)
    aside = place.with_name(f".{place.name}.0123{ASIDE}")
    aside.write_bytes(b"half of it")
    os.utime(aside, (0, 0))
    settings.AUDIT_WARM_DAYS = 150
    assert ran(ARCHIVE).status == "ok"
    assert [it.name for it in place.parent.iterdir()] == [place.name]


def test_new_folders_are_flushed_to_the_disk_with_what_is_in_them(monkeypatch, folders):
    flushed, flush = set(), stores._flush
    monkeypatch.setattr(stores, "_flush", lambda it: flushed.add(it) or flush(it))
    archived()
    month = path_of(AuditArchive.objects.get()).parent
    assert flushed == {month, month.parent, month.parent.parent, folders}


def test_move_that_was_interrupted_is_ended(settings):
    archived(days_ago=190)
    archive = AuditArchive.objects.get()
    data = path_of(archive).read_bytes()
    settings.AUDIT_WARM_DAYS = 100
    ran(ARCHIVE)
    warm_path = Store(Tier.WARM).path_of(archive.name)
    warm_path.write_bytes(data)
    AuditArchive.objects.update(is_doubled=True)
    assert ran(ARCHIVE).status == "ok"
    archive.refresh_from_db()
    assert (archive.is_doubled, warm_path.exists()) == (False, False)
    assert found() == []


class Bucket(FileSystemStorage):
    """A store without paths, whose files are there whole or not at all."""

    fails = None

    def path(self, name):
        """Have none, but for itself."""
        if Bucket.inside:
            return super().path(name)
        raise NotImplementedError

    inside = False

    def _within(self, method, *arguments):
        if Bucket.fails is not None and Bucket.fails():
            raise RuntimeError("the store is not there just now")
        Bucket.inside = True
        try:
            return method(*arguments)
        finally:
            Bucket.inside = False

    def exists(self, name):
        """Tell it."""
        return self._within(super().exists, name) if not Bucket.inside else super().exists(name)

    def delete(self, name):
        """Delete it."""
        self._within(super().delete, name)

    def _open(self, name, mode="rb"):
        return self._within(super()._open, name, mode)

    def _save(self, name, content):
        return self._within(super()._save, name, content)

    def get_available_name(self, name, max_length=None):
        """Overwrite."""
        return name


@pytest.fixture
def bucket(settings, monkeypatch):
    """Keep both tiers in stores without paths; yield the class, to make them fail."""
    configured = json.loads(json.dumps(settings.STORAGES))
    for alias in ("audit_archive", "audit_cold"):
        configured[alias]["BACKEND"] = f"{__name__}.Bucket"
        configured[alias]["OPTIONS"]["allow_overwrite"] = True
    settings.STORAGES = configured
    monkeypatch.setattr(Bucket, "fails", None)
    return Bucket


def test_store_without_paths_takes_archives_too(bucket, settings):
    settings.AUDIT_WARM_DAYS = 150
    ids = archived(3, days_ago=100) + archived(3, days_ago=160)
    assert {it.tier for it in AuditArchive.objects.all()} == {"warm", "cold"}
    assert len(everything(ids)) == 6
    lists = "could not be listed: it has no lists of its files"
    assert (found(), done().notes) == ([], [f"audit_archive {lists}", f"audit_cold {lists}"])


def test_store_that_keeps_other_bytes_than_it_was_given_empties_no_table(bucket, monkeypatch):
    ids = sealed(3, days_ago=100)
    save = Bucket._save

    def cut(store, name, content):
        return save(store, name, ContentFile(content.read()[:-1]))

    monkeypatch.setattr(Bucket, "_save", cut)
    outcome = ran(ARCHIVE)
    assert (outcome.status, "reads otherwise" in outcome.reason) == ("failed", True)
    assert set(ids) <= set(lines_in_table())
    monkeypatch.setattr(Bucket, "_save", save)
    assert ran(ARCHIVE).status == "ok"
    assert len(everything(ids)) == 3
    assert found() == []


def test_store_that_opens_a_file_and_fails_to_read_it_is_away_not_damaged(bucket, monkeypatch):
    archived(2, days_ago=100)

    class Frozen(ContentFile):
        def read(self, *_size):
            raise RuntimeError("InvalidObjectState")

    monkeypatch.setattr(Bucket, "_open", lambda _self, name, _mode="rb": Frozen(b"", name))
    assert [it.what for it in done().findings] == ["file-missing"]
    read = archived_of(Search(action="job-paused"))
    assert list(find(Search(action="job-paused"), read)) == []
    assert "InvalidObjectState" in read.troubles[0]


def test_store_that_fails_half_the_time_loses_nothing_and_doubles_nothing(bucket, settings, rnd):
    settings.AUDIT_WARM_DAYS = 150
    ids = [pk for days in range(100, 220, 12) for pk in sealed(2, days_ago=days)]
    before = lines_in_table()
    bucket.fails = lambda: rnd.random() < 0.5
    statuses = set()
    for _ in range(30):
        statuses.add(runner.run_job(ARCHIVE).status)
        fails, bucket.fails = bucket.fails, None
        assert all_ids() >= set(ids)
        bucket.fails = fails
    assert "failed" in statuses
    bucket.fails = None
    assert ran(ARCHIVE).status == "ok"
    assert everything(ids) == [before[pk] for pk in ids]
    assert AuditArchive.objects.unfinished().count() == 0
    assert done().findings == []


@pytest.fixture
def rnd():
    """Return chances that are the same each time."""
    return random.Random(7)


def test_what_was_abandoned_aside_is_swept(monkeypatch):
    day = (db_now() - timedelta(days=100)).date()
    place = Store(Tier.WARM).path_of(archiving.name_of(day, 1, "0123abcd"))
    place.parent.mkdir(parents=True)
    left = place.with_name(f".{place.name}.0123.part")
    left.write_bytes(b"half")
    archived(days_ago=100)
    assert left.exists()
    monkeypatch.setattr(stores, "ABANDONED_S", -1)
    archived(days_ago=100)
    assert not left.exists()


def test_names_sort_by_day():
    name = archiving.name_of(date(2026, 2, 3), 1, "0123abcd")
    assert name == "2026/02/audit-2026-02-03-001-0123abcd.jsonl.gz"


def test_preview_is_what_the_next_run_does(settings):
    settings.AUDIT_WARM_DAYS = 200
    archived(days_ago=199)
    settings.AUDIT_WARM_DAYS = 150
    sealed(2, days_ago=100)
    sealed(days_ago=101)
    out = io.StringIO()
    call_command("audit", "archive", "--dry-run", stdout=out)
    assert "audit records to archive: 3, of 2 days (AUDIT_HOT_DAYS=90)" in out.getvalue()
    assert "archives to put away: 1 (AUDIT_WARM_DAYS=150)" in out.getvalue()
    assert "outbox_entries" in out.getvalue()
    out = io.StringIO()
    call_command("audit", "archive", "--dry-run", "--json", stdout=out)
    document = json.loads(out.getvalue())
    assert (document["records"], document["days"], document["to_put_away"]) == (3, 2, 1)
    assert {it["rule"] for it in document["rules"]} >= {"job_runs", "plans"}
    result = ran(ARCHIVE).result
    assert (result["records_archived"], result["archives_put_away"]) == (3, 1)
