"""Records are found in all tiers alike: in one order, once, from files that may have them."""

import csv
import gzip
import io
import json
import subprocess
from datetime import datetime, timedelta
from hashlib import sha256
from uuid import UUID, uuid4

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from recovery import audit, leases, pauses, search
from recovery.clock import db_now
from recovery.models import AuditArchive, AuditRecord, Job, RestoredRecord
from recovery.search import Search, archived_of, as_dict, find
from recovery.trail import archiving, copies, exporting, reading
from recovery.trail.lines import COLUMNS, line_of
from recovery.trail.terms import filter_of, may_have
from tests.recovery.trail.records import (
    ARCHIVE,
    SEAL,
    archived,
    lines_in_table,
    path_of,
    ran,
    repacked,
    sealed,
    unpacked,
    written,
)

pytestmark = pytest.mark.django_db(transaction=True)


RUN = UUID("7e4a14aa-9c2d-46bf-bdcd-bacd4e232d3f")
WANTED = {"actor": "cli:x", "action": "wanted", "target_id": "W"}


def line(record):
    """Return a record's line."""
    return line_of((record.pk, *(getattr(record, it) for it in COLUMNS[1:])))


def ids(**more):
    """Return the ids that a search finds, less the records about archives."""
    return [it.pk for it in find(Search(**more)) if it.action != "audit-archived"]


def tiers(settings):
    """Store records in all three tiers, with run ids; return the lines by id, oldest first."""
    settings.AUDIT_WARM_DAYS = 200
    for days in (250, 240, 150, 140, 20, 10):
        written(3, days_ago=days, target_id=f"T{days}", run_id=uuid4(), reason=f"«{days}» 木板")
    ran("auditSeal")
    before = lines_in_table()
    assert ran(ARCHIVE).status == "ok"
    assert {it.tier for it in AuditArchive.objects.all()} == {"warm", "cold"}
    return before


def test_every_record_is_found_again_byte_for_byte(settings):
    before = tiers(settings)
    found = [it for it in find(Search(everything=True)) if it.pk in before]
    assert [it.pk for it in found] == sorted(before, reverse=True)
    assert {it.pk: line(it) for it in found} == before


def test_command_prints_the_same_before_and_after(settings):
    written(3, days_ago=100, run_id=uuid4(), evidence={"z": 1, "a": {"d": 1, "c": 2}})
    before = printed("--action", "job-paused")
    ran("auditSeal")
    ran(ARCHIVE)
    assert not AuditRecord.objects.filter(action="job-paused").exists()
    assert printed("--action", "job-paused") == before


def printed(*arguments):
    """Return the records that the command prints."""
    out = io.StringIO()
    call_command("audit", "search", "--json", *arguments, stdout=out)
    return json.loads(out.getvalue())["records"]


@pytest.mark.parametrize("column", ["actor", "action", "target", "run_id", "text"])
def test_each_filter_reaches_all_tiers(settings, column):
    tiers(settings)
    for days in (250, 150, 20):
        written(days_ago=days, run_id=RUN, reason="Found ME", **WANTED)
    ran("auditSeal")
    ran(ARCHIVE)
    value = {
        "actor": "cli:x",
        "action": "wanted",
        "target": "job/W",
        "run_id": RUN,
        "text": "found me",
    }[column]
    more = {"everything": True} if column == "text" else {}
    assert len(ids(**{column: value}, **more)) == 3


def test_times_are_a_half_open_range_in_all_tiers(settings):
    before = tiers(settings)
    records = {pk: json.loads(it) for pk, it in before.items()}
    moments = sorted({it["at"] for it in records.values()})
    low, high = (datetime.fromisoformat(moments[at]) for at in (2, 4))
    within = (pk for pk, it in records.items() if moments[2] <= it["at"] < moments[4])
    assert sorted(ids(since=low, until=high)) == sorted(within)
    found = [it.at for it in find(Search(since=low))]
    assert found == sorted(found, reverse=True)


def test_time_of_a_record_finds_it_whatever_database_wrote_it():
    with transaction.atomic():
        record = audit.record(actor="a", action="b", target_type="t", target_id="i")
    record.refresh_from_db()
    assert ids(since=record.at) == [record.pk]
    assert ids(until=record.at) == []
    assert ids(until=record.at + timedelta(milliseconds=1)) == [record.pk]


def test_tables_and_files_tell_upper_and_lower_case_apart():
    wanted = {"actor": "cli:Ann", "action": "Read", "target_type": "Job", "target_id": "Q"}
    sealed(days_ago=100, **wanted)
    spelled = [
        {"actor": "cli:ann"},
        {"actor": "cli:Ann "},
        {"action": "read"},
        {"target": "job/Q"},
        {"target": "Job/q"},
    ]
    assert [ids(**it) for it in spelled] == [[]] * len(spelled)
    assert len(ids(actor="cli:Ann", action="Read", target="Job/Q")) == 1
    ran(ARCHIVE)
    assert [ids(**it) for it in spelled] == [[]] * len(spelled)
    assert len(ids(actor="cli:Ann", action="Read", target="Job/Q")) == 1


def test_target_may_be_said_with_its_type_or_without():
    archived(target_type="order", target_id="A/1")
    archived(target_type="A", target_id="1")
    assert len(ids(target="order/A/1")) == 1
    assert len(ids(target="A/1")) == 2
    assert len(ids(target="1")) == 1
    assert ids(target="order/1") == []


def test_word_that_stands_elsewhere_in_a_line_is_no_match():
    archived(actor="x", before={"actor": "cli:ann", "action": "job-paused"})
    assert ids(actor="cli:ann") == []


def test_file_that_cannot_have_the_record_is_not_opened():
    for days in range(100, 130):
        sealed(days_ago=days, target_id=f"T{days}")
    ran(ARCHIVE)
    wanted = Search(target="job/T117")
    read = archived_of(wanted)
    assert len(list(find(wanted, read))) == 1
    assert read.opened <= 3
    since = Search(since=db_now() - timedelta(days=103.5), until=db_now() - timedelta(days=101.5))
    read = archived_of(since)
    assert len(list(find(since, read))) == 2
    assert read.opened == 2


def test_files_are_opened_as_they_are_come_to():
    for days in range(100, 110):
        sealed(days_ago=days)
    ran(ARCHIVE)
    wanted = Search()
    read = archived_of(wanted)
    found = find(wanted, read)
    for _ in range(12):
        next(found)
    assert read.opened < 5


@pytest.mark.parametrize("by", ["ids", "times"])
def test_what_moves_while_it_is_searched_is_found_once(settings, monkeypatch, by):
    monkeypatch.setattr(search, "FIRST_PAGE", 4)
    monkeypatch.setattr(search, "LARGEST_PAGE", 4)
    all_of_them = [pk for days in range(130, 95, -1) for pk in sealed(2, days_ago=days)]
    all_of_them += sealed(6, days_ago=1)
    wanted = Search(since=db_now() - timedelta(days=1_000)) if by == "times" else Search()
    found = find(wanted)
    seen = [next(found).pk for _ in range(7)]
    ran(ARCHIVE)
    seen += [it.pk for it in found if it.action != "audit-archived"]
    assert seen == sorted(all_of_them, reverse=True)


def test_rows_that_are_in_the_file_and_still_in_the_table_are_found_once(monkeypatch):
    def halfway(_made, _run):
        yield {}
        raise OSError("stopped")

    monkeypatch.setattr(archiving, "_empty", halfway)
    expected = sealed(5, days_ago=100)
    ran(ARCHIVE)
    assert AuditArchive.objects.get().status == "written"
    AuditRecord.objects.filter(pk__in=expected[:2]).leave_for(AuditArchive.objects.get())
    assert ids() == expected[::-1]


def test_file_that_cannot_be_read_is_told_and_the_others_are_searched(tmp_path):
    archived(days_ago=120)
    (good,) = archived(days_ago=100)
    bad = AuditArchive.objects.order_by("day").first()
    path_of(bad).write_bytes(b"nothing")
    wanted = Search(action="job-paused")
    read = archived_of(wanted)
    assert [it.pk for it in find(wanted, read)] == [good]
    assert [it.partition(":")[0] for it in read.troubles] == [bad.name]
    out, errors = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as left:
        call_command("audit", "search", "--json", stdout=out, stderr=errors)
    assert left.value.code == 1
    assert bad.name in errors.getvalue()
    assert json.loads(out.getvalue())["unread"]
    out = io.StringIO()
    with pytest.raises(SystemExit) as left:
        call_command("audit", "export", f"{tmp_path / 'out'}", "--json", stdout=out, stderr=errors)
    assert left.value.code == 1
    assert bad.name in json.loads(out.getvalue())["unread"][0]


def test_wait_can_be_bounded_and_what_was_not_looked_at_is_told():
    for days in (100, 110):
        archived(days_ago=days)
    wanted = Search(action="job-paused")
    read = archived_of(wanted, until_s=0)
    assert list(find(wanted, read)) == []
    assert len(read.unread) == 2


def test_file_that_is_put_away_meanwhile_is_found_where_it_is(settings):
    archived(days_ago=190)
    archive = AuditArchive.objects.get()
    settings.AUDIT_WARM_DAYS = 100
    ran(ARCHIVE)
    assert archive.tier == "warm"
    assert len(list(reading.records_of(archive))) == 1


def test_filter_has_all_its_terms_and_few_others():
    terms = [f"target:SO-{number}" for number in range(5_000)]
    made = filter_of(terms)
    assert all(may_have(made, it) for it in terms)
    strange = sum(may_have(made, f"target:XX-{number}") for number in range(5_000))
    assert strange < 200
    assert not may_have(filter_of([]), "x")


def brought(**more):
    """Bring copies back."""
    return copies.bring_back(Search(**more), actor="cli:ann", reason="INC-42")


def test_copies_are_brought_back_once_looked_at_and_taken_away_on_the_record():
    old = archived(3, days_ago=120)
    archived(2, days_ago=100)
    before = {it.pk: line(it) for it in find(Search())}
    assert brought(until=db_now() - timedelta(days=110)) == {"found": 3, "brought": 3}
    assert [it.pk for it in RestoredRecord.objects.order_by("pk")] == old
    assert {it.pk: line(it) for it in RestoredRecord.objects.all()} == {
        pk: before[pk] for pk in old
    }
    assert brought(until=db_now() - timedelta(days=110)) == {"found": 3, "brought": 0}
    assert brought(everything=True) == {"found": 5, "brought": 2}
    record = AuditRecord.objects.filter(action="audit-restored").order_by("pk").first()
    assert (record.actor, record.reason) == ("cli:ann", "INC-42")
    assert record.after == {"found": 3, "brought": 3}
    assert "until" in record.evidence
    assert copies.take_away(actor="cli:ann", reason="looked at") == 5
    assert not RestoredRecord.objects.exists()
    assert AuditRecord.objects.filter(action="audit-restored").count() == 3
    assert copies.take_away(actor="cli:ann", reason="") == 0


def test_too_many_copies_and_unreadable_files_bring_nothing_back(monkeypatch):
    archived(3, days_ago=120)
    monkeypatch.setattr(copies, "MOST_RECORDS", 2)
    with pytest.raises(copies.TooManyError, match="The most are 2"):
        brought(everything=True)
    monkeypatch.setattr(copies, "MOST_RECORDS", 9)
    archive = AuditArchive.objects.get()
    repacked(archive, [*unpacked(archive)[:2], b"hello\n"])
    with pytest.raises(copies.UnreadableError, match=archive.name):
        brought(everything=True)
    assert not RestoredRecord.objects.exists()
    assert not AuditRecord.objects.filter(action="audit-restored").exists()


def test_copies_are_stored_in_statements_that_the_server_takes():
    for _ in range(3):
        written(40, days_ago=120, evidence={"payload": "x" * 200_000})
    ran("auditSeal")
    ran(ARCHIVE)
    with CaptureQueriesContext(connection) as made:
        assert brought(action="job-paused") == {"found": 120, "brought": 120}
    assert max(len(it["sql"]) for it in made) < 2 * copies.BYTES_AT_ONCE


def test_two_that_bring_the_same_back_at_once_are_told(monkeypatch):
    archived(2, days_ago=120)
    brought(everything=True)
    rows = type(RestoredRecord.objects.all())
    # What the other one stores is not committed when it is looked for.
    monkeypatch.setattr(rows, "values_list", lambda self, *_names, **_more: self.none())
    errors = io.StringIO()
    with pytest.raises(SystemExit) as left:
        call_command("audit", "restore", "--all", stdout=io.StringIO(), stderr=errors)
    assert (left.value.code, "try once more" in errors.getvalue()) == (1, True)


def exported(folder, **more):
    """Export what a search finds."""
    return exporting.export(find(Search(**more)), folder)


def test_export_has_the_records_and_what_proves_them(settings, tmp_path):
    before = tiers(settings)
    folder = tmp_path / "out"
    done = exported(folder, action="job-paused")
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    assert lines == [before[pk] for pk in sorted(before, reverse=True)]
    assert (done.records, done.unsealed) == (len(before), [])
    hashes = set()
    for text in (folder / "proof.jsonl").read_text().splitlines():
        seal = json.loads(text)
        hashes |= set(seal["lines"])
        listed = "".join(f"{it}\n" for it in seal["lines"])
        assert sha256(listed.encode()).hexdigest() == seal["digest"]
    assert {sha256(it).hexdigest() for it in lines} <= hashes
    previous = None
    for text in (folder / "chain.jsonl").read_text().splitlines():
        seal = json.loads(text)
        signed = (
            f"seal {seal['seal']}\nprevious {seal['previous'] or '-'}\nday {seal['day']}\n"
            f"at {seal['at']}\nrecords {seal['records']}\ndigest {seal['digest']}\n"
        )
        assert sha256(signed.encode()).hexdigest() == seal["hash"]
        assert previous in (None, seal["previous"])
        previous = seal["hash"]


@pytest.mark.parametrize("reads", [exporting._archives_of, exporting._in_table])
def test_records_that_are_archived_while_they_are_exported_are_proved(tmp_path, monkeypatch, reads):
    def late(seals):
        if reads is exporting._in_table:
            ran(ARCHIVE)
            yield from reads(seals)
            return
        yield from reads(seals)
        ran(ARCHIVE)

    sealed(3, days_ago=100)
    monkeypatch.setattr(exporting, reads.__name__, late)
    exported(tmp_path / "out", action="job-paused")
    (text,) = (tmp_path / "out" / "proof.jsonl").read_text().splitlines()
    listed = "".join(f"{it}\n" for it in json.loads(text)["lines"])
    assert sha256(listed.encode()).hexdigest() == json.loads(text)["digest"]


def test_export_asks_for_some_seals_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SEALS_AT_ONCE", 2)
    archived(days_ago=120)
    archived(days_ago=110)
    sealed()
    assert exported(tmp_path / "out", action="job-paused").seals == 3
    lines = (tmp_path / "out" / "proof.jsonl").read_text().splitlines()
    assert len({json.loads(it)["seal"] for it in lines}) == len(lines) == 3


def test_sums_of_an_export_are_those_that_sha256sum_checks(tmp_path):
    archived(3)
    exported(tmp_path / "out", everything=True)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "out", check=False
    )
    assert done.returncode == 0


def test_cells_of_an_export_are_no_formulas(tmp_path):
    for text in ("=1+1", "+1", "-1", "@x", "\tx", "\rx"):
        written(reason=text)
    exported(tmp_path / "out", everything=True)
    with (tmp_path / "out" / "records.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {it["reason"][:1] for it in rows} == {"'"}
    assert json.loads(rows[0]["before"])["a"] == [1.5, None, "木"]


def test_export_says_what_is_not_sealed_and_overwrites_nothing(tmp_path):
    sealed()
    (fresh,) = written()
    assert exported(tmp_path / "out", everything=True).unsealed == [fresh]
    for used in (tmp_path / "out", tmp_path / "out" / "records.csv"):
        with pytest.raises(exporting.NotEmptyError):
            exported(used, everything=True)


def test_commands_restore_and_export(tmp_path):
    archived(2, days_ago=120)
    out = io.StringIO()
    call_command("audit", "restore", "--all", "--json", stdout=out)
    assert json.loads(out.getvalue()) == {"found": 2, "brought": 2}
    out = io.StringIO()
    call_command("audit", "restore", "--all", stdout=out)
    assert "2 archived records found, 0 brought back, 2 were there already" in out.getvalue()
    out = io.StringIO()
    call_command("audit", "restore", "--since", "1h", stdout=out)
    assert out.getvalue() == "0 archived records found: nothing was brought back\n"
    out = io.StringIO()
    call_command("audit", "restore", "--away", stdout=out)
    assert "2 copies deleted" in out.getvalue()
    out = io.StringIO()
    call_command("audit", "export", str(tmp_path / "out"), "--action", "job-paused", stdout=out)
    assert "2 records" in out.getvalue()


def test_command_archives_until_nothing_is_due(settings):
    settings.JOB_TIME_BUDGET_SEC = 0
    written(60, days_ago=100)
    out = io.StringIO()
    call_command("audit", "archive", "--json", stdout=out)
    assert json.loads(out.getvalue())["result"]["records_archived"] == 60
    assert AuditArchive.objects.done().count() == 1


def test_command_archives_while_a_worker_seals_and_not_where_sealing_is_paused():
    sealed(3, days_ago=100)
    leases.acquire(SEAL)
    out = io.StringIO()
    call_command("audit", "archive", stdout=out)
    assert "auditSeal: skipped: locked\n" in out.getvalue()
    assert "records_archived: 3\n" in out.getvalue()
    Job.objects.update(lease_expires_at=None)
    pauses.pause(SEAL, actor="ann")
    with pytest.raises(SystemExit) as left:
        call_command("audit", "archive")
    assert left.value.code == 1


def test_searching_many_archives_takes_few_statements(django_assert_max_num_queries):
    for days in range(100, 120):
        sealed(days_ago=days, target_id=f"T{days}")
    ran(ARCHIVE)
    with django_assert_max_num_queries(20):
        assert len(ids(target="job/T110")) == 1


def test_record_in_an_archive_is_never_stored_again():
    archived()
    (record,) = reading.records_of(AuditArchive.objects.get())
    with pytest.raises(TypeError), transaction.atomic():
        record.save()
    with transaction.atomic():
        audit.record(actor="a", action="b", target_type="c", target_id="d")


def test_file_is_what_the_documentation_says():
    archived(2)
    archive = AuditArchive.objects.get()
    *lines, seal = gzip.decompress(path_of(archive).read_bytes()).splitlines()
    assert [list(json.loads(it)) for it in lines] == [list(COLUMNS)] * 2
    assert list(json.loads(seal)) == [
        "seal", "previous", "day", "at", "records", "digest", "hash", "mac", "key",
    ]  # fmt: skip
    assert as_dict(next(iter(reading.records_of(archive))))["id"] == json.loads(lines[0])["id"]
