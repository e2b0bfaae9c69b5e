"""Two hundred days of audit records, archived and found again; and memory that does not grow."""

import tracemalloc
from datetime import timedelta

import pytest
from django.db import connection

from recovery.clock import db_now
from recovery.models import AuditArchive, AuditRecord
from recovery.search import Search, archived_of, find
from recovery.trail.lines import COLUMNS, line_of
from tests.recovery.trail.records import ARCHIVE, SEAL, done, lines_in_table, ran
from tests.tables import moment, store_many, text

pytestmark = pytest.mark.django_db(transaction=True)

TARGETS = 500


def store_days(days, a_day, *, youngest=100):
    """Store so many records a day, the youngest so many days old."""
    begin = (db_now() - timedelta(days=days + youngest)).strftime("%Y-%m-%d %H:%M:%S")
    store_many(
        AuditRecord,
        days * a_day,
        at=moment(f"CAST(n * {86_400 / a_day} AS {_whole()})", begin),
        actor=text("cli:{n % 20}"),
        action=text("split-order-{n % 7}"),
        target_type="split-order",
        target_id=text(f"SO-{{n % {TARGETS}}}"),
        reason=text("record {n}"),
        before={"status": "failed", "attempts": 5},
        after={"status": "ready"},
        evidence={"checked": ["lock", "lease"]},
    )


def _whole():
    return "SIGNED" if connection.vendor == "mysql" else "INTEGER"


def line(record):
    return line_of((record.pk, *(getattr(record, name) for name in COLUMNS[1:])))


def test_two_hundred_days_are_archived_and_each_record_is_found_byte_for_byte(settings):
    settings.AUDIT_WARM_DAYS = 200
    store_days(200, 50)
    before = lines_in_table()
    assert ran(SEAL).status == "ok"
    assert ran(ARCHIVE).status == "ok"
    assert not AuditRecord.objects.filter(pk__in=list(before)).exists()
    assert 200 <= AuditArchive.objects.done().count() <= 201
    assert set(AuditArchive.objects.values_list("tier", flat=True)) == {"warm", "cold"}
    found = (it for it in find(Search(everything=True)) if it.pk in before)
    assert {it.pk: line(it) for it in found} == before
    assert done().findings == []
    wanted = Search(target="split-order/SO-7")
    read = archived_of(wanted)
    assert len(list(find(wanted, read))) == len(before) // TARGETS
    holding = AuditArchive.objects.done().count()
    assert read.opened < holding / 2


def test_memory_does_not_grow_with_the_number_of_days():
    peaks = []
    for days in (4, 40):
        store_days(days, 250)
        tracemalloc.start()
        assert ran(SEAL).status == "ok"
        assert ran(ARCHIVE).status == "ok"
        assert done().findings == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    few, many = peaks
    assert many < 4 * few


@pytest.fixture(autouse=True)
def _small_seals(monkeypatch):
    """Let a few records be many: a seal and what is read at once are smaller, too."""
    for name, value in (("seals.MOST_RECORDS", 250), ("verifying.RECORDS_AT_ONCE", 250)):
        monkeypatch.setattr(f"recovery.trail.{name}", value)
