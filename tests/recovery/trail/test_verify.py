"""One bit, one row, one line: whatever was changed since it was sealed is named."""

import gzip
import io
import json
import shutil

import pytest
from django.core.management import call_command
from django.db import connection

from recovery.models import AuditArchive, AuditSeal, AuditSealSpan, Tier
from recovery.search import Search, find
from recovery.trail import seals, verifying
from recovery.trail.lines import digest_of, hash_of, marks_of
from recovery.trail.stores import Store
from recovery.trail.verifying import Kept, Verification
from tests.recovery.trail.records import (
    ARCHIVE,
    archived,
    done,
    found,
    lines_in_table,
    newest,
    path_of,
    ran,
    repacked,
    run_sql,
    sealed,
    unpacked,
    written,
)

pytestmark = pytest.mark.django_db(transaction=True)

TABLE = "recovery_auditrecord"
COLUMNS = {
    "at": "2020-01-01 00:00:00",
    "actor": "cli:eve",
    "action": "job-resumed",
    "target_type": "other",
    "target_id": "y",
    "reason": "another one",
    "before": '{"a": 2}',
    "after": '{"a": 2}',
    "evidence": '{"a": 2}',
    "run_id": "7e4a14aa9c2d46bfbdcdbacd4e232d3f",
}


def test_nothing_that_happens_by_itself_is_found():
    archived(3)
    sealed(4)
    written(2)
    verified = done()
    assert verified.findings == []
    # The archive has a record of its own: audit-archived.
    assert (verified.records, verified.archives, verified.waiting) == (8, 1, 2)


def test_empty_trail_is_sound():
    assert found() == []


@pytest.mark.parametrize("column", COLUMNS)
def test_record_that_was_changed_in_the_table_is_named(column):
    ids = sealed(5)
    name = connection.ops.quote_name(column)
    run_sql(f"UPDATE {TABLE} SET {name} = %s WHERE id = %s", COLUMNS[column], ids[2])
    assert found() == [("changed", ids[2])]


def test_record_that_was_removed_from_the_table_is_named():
    ids = sealed(5)
    run_sql(f"DELETE FROM {TABLE} WHERE id IN (%s, %s)", ids[1], ids[3])
    assert found() == [("removed", ids[1]), ("removed", ids[3])]


def test_record_that_was_put_into_the_table_is_named(monkeypatch):
    monkeypatch.setattr(seals, "LATE_S", -1)
    ids = sealed(3)
    run_sql(f"UPDATE {TABLE} SET id = %s WHERE id = %s", ids[-1] + 5, ids[-1])
    written()
    assert found()[0] == ("removed", ids[-1])


def test_archived_record_that_came_back_into_the_table_is_named():
    (pk,) = archived()
    (other,) = sealed()
    run_sql(f"UPDATE {TABLE} SET id = %s WHERE id = %s", pk, other)
    assert ("inserted", pk) in found()


def test_all_that_was_done_to_one_seal_is_named_in_order():
    ids = sealed(5)
    run_sql(f"DELETE FROM {TABLE} WHERE id = %s", ids[4])
    run_sql(f"UPDATE {TABLE} SET actor = 'eve' WHERE id = %s", ids[0])
    assert found() == [("changed", ids[0]), ("removed", ids[4])]


@pytest.mark.parametrize("column", ["digest", "hash", "previous", "mac", "day", "at"])
def test_seal_that_was_changed_is_named(column):
    sealed(2)
    sealed(2)
    AuditSeal.objects.filter(number=1).update(
        **{column: {"day": "2020-01-01", "at": "2020-01-01T00:00Z"}.get(column, "0" * 64)}
    )
    first = done().findings[0]
    assert (first.what, first.seal) == ("seal-changed", 1)


def test_marks_and_spans_that_were_changed_are_found():
    ids = sealed(2)
    marks = newest().marks
    AuditSeal.objects.update(marks=b"\0" * 16)
    assert [it.what for it in done().findings] == ["seal-changed"]
    AuditSeal.objects.update(marks=marks)
    assert found() == []
    AuditSealSpan.objects.update(first_id=ids[1])
    assert {it.what for it in done().findings} >= {"seal-changed", "inserted"}


def test_seal_that_was_made_by_somebody_without_the_key_is_named():
    """Whoever may write to the database can make a chain that fits, but cannot sign it."""
    (pk,) = sealed()
    run_sql(f"UPDATE {TABLE} SET actor = 'eve' WHERE id = %s", pk)
    seal = newest()
    hashes = [hash_of(lines_in_table()[pk])]
    seal.digest, seal.marks = digest_of(hashes), marks_of(hashes)
    seal.hash = seals.hash_of_seal(seal, seal.ranges())
    seal.save()
    (first,) = done().findings
    assert (first.what, first.seal) == ("seal-changed", 1)
    assert "signed" in first.detail


def test_seals_that_were_removed_with_their_records_are_missed():
    sealed()
    middle = sealed()
    sealed()
    run_sql(f"DELETE FROM {TABLE} WHERE id = %s", middle[0])
    AuditSeal.objects.filter(number=2).delete()
    first = done().findings[0]
    assert (first.what, first.seal) == ("seal-removed", 2)


def test_end_of_the_chain_that_was_cut_off_is_missed_by_the_seal_that_was_kept():
    sealed()
    last = sealed()
    kept = Kept(newest().number, newest().hash)
    assert found(kept) == []
    run_sql(f"DELETE FROM {TABLE} WHERE id = %s", last[0])
    AuditSeal.objects.filter(number=2).delete()
    assert found() == []
    (first,) = done(kept).findings
    assert (first.what, first.seal) == ("seal-removed", 2)
    assert [it.what for it in done(Kept(1, "0" * 64)).findings] == ["seal-removed"]


def the_archive():
    """Return the only archive, and the ids in it."""
    ids = archived(5)
    return AuditArchive.objects.get(), ids


def test_line_that_was_changed_in_a_file_is_named():
    archive, ids = the_archive()
    lines = unpacked(archive)
    repacked(archive, [*lines[:2], lines[2].replace(b"cli:ann", b"cli:anm"), *lines[3:]])
    assert found() == [("changed", ids[2])]


def test_line_that_was_removed_from_a_file_is_named():
    archive, ids = the_archive()
    lines = unpacked(archive)
    repacked(archive, [*lines[:2], *lines[3:]])
    assert found() == [("removed", ids[2])]


def test_line_that_was_put_into_a_file_is_named():
    archive, ids = the_archive()
    lines = unpacked(archive)
    strange = lines[2].replace(f'"id":{ids[2]},'.encode(), b'"id":999999,')
    repacked(archive, [*lines[:2], strange, *lines[2:]])
    assert found() == [("inserted", 999999)]
    repacked(archive, [*lines[:2], lines[1], *lines[2:]])
    assert found() == [("inserted", ids[1])]
    repacked(archive, [*lines[:2], b"hello\n", *lines[2:]])
    assert [what for what, _ in found()] == ["inserted"]


@pytest.mark.parametrize(
    "more",
    [
        {"id": "x"},
        {"id": None},
        {"id": True},
        {"at": "2026-01-01T00:00:00"},
        {"at": "0001-01-01T00:00:00+09:00"},
        {"actor": 5},
        {"run_id": 7},
        None,
    ],
)
def test_line_that_is_no_record_is_named_and_keeps_nobody_from_the_others(more):
    first, _last = archived(2)
    archive = AuditArchive.objects.get()
    lines = unpacked(archive)
    deep = b"[" * 100_000 + b"]" * 100_000
    text = json.dumps(json.loads(lines[0]) | more).encode() if more else deep
    repacked(archive, [lines[0], text + b"\n", *lines[1:]])
    assert found()[0][0] == "inserted"
    assert first in {it.pk for it in find(Search(action="job-paused"))}


def test_lines_in_another_order_are_found():
    archive, _ids = the_archive()
    lines = unpacked(archive)
    repacked(archive, [lines[1], lines[0], *lines[2:]])
    assert [what for what, _ in found()] == ["seal-changed"]


def test_seal_that_was_removed_from_a_file_is_found():
    archive, _ids = the_archive()
    repacked(archive, unpacked(archive)[:-1])
    assert found() != []
    repacked(archive, [])
    assert [what for what, _ in found()] == ["removed"]


@pytest.mark.parametrize("part", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9999])
@pytest.mark.parametrize("bit", [1, 128])
def test_any_bit_of_a_file_that_was_flipped_is_found(part, bit):
    archive, _ids = the_archive()
    data = bytearray(path_of(archive).read_bytes())
    data[int(part * len(data))] ^= bit
    path_of(archive).write_bytes(data)
    first = done().findings[0]
    assert first.place == archive.name
    assert first.record is not None or first.what.startswith(("file-", "seal-"))


def test_every_single_bit_of_a_file_is_guarded():
    archive, _ids = the_archive()
    data = path_of(archive).read_bytes()
    for at in range(0, len(data) * 8, 37):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << (at % 8)
        path_of(archive).write_bytes(flipped)
        assert found() != [], f"bit {at}"


def test_file_that_is_away_or_cut_off_is_named_with_its_first_record():
    archive, ids = the_archive()
    data = path_of(archive).read_bytes()
    path_of(archive).write_bytes(data[: len(data) // 2])
    (cut,) = done().findings
    assert (cut.what, cut.place) == ("file-damaged", archive.name)
    assert cut.record in ids
    path_of(archive).unlink()
    assert found() == [("file-missing", ids[0])]


def test_file_packed_anew_with_the_same_records_is_told_apart():
    archive, _ids = the_archive()
    path_of(archive).write_bytes(gzip.compress(b"".join(unpacked(archive)), 1, mtime=1))
    assert [what for what, _ in found()] == ["file-changed"]


def test_late_commit_beside_a_seal_that_is_made_meanwhile_is_no_finding(monkeypatch):
    sealed()
    ids = written(3)
    rows, judge = seals._rows_above, verifying._judge

    def overtaken(execute, sql, *more):
        done = execute(sql, *more)
        if "recovery_auditseal" in sql and not made:
            made.append(sql)
            with monkeypatch.context() as patched:
                # When the sealer read, the second one was not committed yet.
                patched.setattr(
                    seals, "_rows_above", lambda *at: (it for it in rows(*at) if it[0] != ids[1])
                )
                seals.seal_some(lambda: None)
        return done

    def judged(*given):
        with connection.execute_wrapper(overtaken):
            judge(*given)

    made = []
    monkeypatch.setattr(verifying, "_judge", judged)
    assert found() == []
    assert made


def test_findings_are_not_endless(monkeypatch):
    monkeypatch.setattr(verifying, "MOST_FINDINGS", 3)
    sealed(10)
    run_sql(f"UPDATE {TABLE} SET actor = 'eve'")
    assert len(done().findings) >= 3


def commanded(*arguments):
    """Return the status and the JSON of a command."""
    out = io.StringIO()
    try:
        call_command("audit", *arguments, "--json", stdout=out)
    except SystemExit as left:
        return left.code, json.loads(out.getvalue())
    return 0, json.loads(out.getvalue())


def test_command_names_the_first_and_exits_1():
    ids = sealed(3)
    status, document = commanded("verify")
    assert (status, document["findings"], document["records"]) == (0, [], 3)
    kept = f"{document['newest']['seal']}:{document['newest']['hash']}"
    assert commanded("verify", "--kept", kept)[0] == 0
    run_sql(f"UPDATE {TABLE} SET reason = 'x' WHERE id = %s", ids[1])
    status, document = commanded("verify")
    assert status == 1
    assert document["findings"][0] == {
        "what": "changed",
        "place": "table",
        "record": ids[1],
        "seal": 1,
        "detail": "job-paused job/x by cli:ann",
    }


def test_seal_command_prints_what_kept_takes():
    written(2)
    status, document = commanded("seal")
    assert (status, document["newest"]["seal"]) == (0, 1)
    assert commanded("verify", "--kept", f"1:{document['newest']['hash']}")[0] == 0
    assert commanded("verify", "--kept", f"1:{document['newest']['hash'].upper()}")[0] == 0
    assert commanded("verify", "--kept", f"1:{'0' * 64}")[0] == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [("terms", b"\0" * 64), ("first_id", 1), ("last_id", 2**40), ("count", 1),
     ("first_at", "2020-01-01T00:00Z"), ("last_at", "2030-01-01T00:00Z")],
)  # fmt: skip
def test_manifest_that_hides_records_from_search_is_named(column, value):
    archive, _ids = the_archive()
    AuditArchive.objects.filter(pk=archive.pk).update(**{column: value})
    (finding,) = done().findings
    assert (finding.what, finding.place) == ("manifest-changed", archive.name)
    assert column in finding.detail


def test_forgery_over_an_archived_record_is_named():
    archive, ids = the_archive()
    AuditArchive.objects.filter(pk=archive.pk).update(status="written")
    (other,) = sealed()
    run_sql(f"UPDATE {TABLE} SET id = %s WHERE id = %s", ids[1], other)
    assert ("changed", ids[1]) in found()


def test_file_that_is_put_away_while_it_is_verified_is_no_finding(settings, monkeypatch):
    archived(3, days_ago=190)
    reading = verifying.Store.reading

    def moved(store, name):
        monkeypatch.setattr(verifying.Store, "reading", reading)
        settings.AUDIT_WARM_DAYS = 100
        assert ran(ARCHIVE).status == "ok"
        return reading(store, name)

    monkeypatch.setattr(verifying.Store, "reading", moved)
    assert found() == []
    assert AuditArchive.objects.get().tier == "cold"


def test_file_that_no_archive_knows_of_is_a_note(capsys, folders):
    archived(2, days_ago=100)
    archive = AuditArchive.objects.get()
    stray = path_of(archive).with_name("audit-2026-01-01-001-0badcafe.jsonl.gz")
    stray.write_bytes(path_of(archive).read_bytes())
    for name in ("notes.txt", ".audit-2026-01-02-001-x.jsonl.gz.1.part"):
        stray.with_name(name).write_text("not an archive")
    (folders / "warm" / "lost+found").mkdir()
    name = f"{archive.name.rpartition('/')[0]}/{stray.name}"
    note = f"{name} (audit_archive): no archive knows of it"
    assert (done().notes, done().findings) == ([note], [])
    status, document = commanded("verify")
    assert (status, document["notes"]) == (0, [note])
    call_command("audit", "verify")
    assert f"note: {note}\nall as it was sealed" in capsys.readouterr().out


def test_file_that_is_in_both_tiers_is_no_stray(folders):
    archived(2, days_ago=100)
    archive = AuditArchive.objects.get()
    shutil.copytree(folders / "warm", folders / "cold")
    assert done().notes == []
    AuditArchive.objects.update(name=f"{archive.name}x")
    assert len(done().notes) == 2


def test_store_that_cannot_be_listed_is_a_note(monkeypatch):
    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(Store(Tier.COLD).storage, "listdir", refuse)
    (note,) = done().notes
    assert note.startswith("audit_cold could not be listed: all files in audit_cold: Permission")


def test_many_files_are_known_by_few_queries(monkeypatch, django_assert_max_num_queries):
    monkeypatch.setattr(verifying, "NAMES_AT_ONCE", 3)
    names = [f"2026/01/audit-{day:02}.jsonl.gz" for day in range(1, 8)]
    monkeypatch.setattr(Store, "names", lambda self: iter(names if self.tier == "warm" else []))
    with django_assert_max_num_queries(3):
        noted = Verification()
        verifying._strays(noted)
    assert [it.partition(" ")[0] for it in noted.notes] == names


def test_seals_of_large_records_are_not_read_at_once(monkeypatch):
    for _ in range(3):
        sealed(reason="x" * 1_000)
    in_order = AuditSeal.objects.order_by("number")
    assert len(verifying._as_many(in_order)) == 3
    monkeypatch.setattr(verifying, "BYTES_AT_ONCE", 1_500)
    assert [it.number for it in verifying._as_many(in_order)] == [1]
    monkeypatch.setattr(verifying, "BYTES_AT_ONCE", 1)
    assert [it.number for it in verifying._as_many(in_order)] == [1]
    assert done().records == 3
