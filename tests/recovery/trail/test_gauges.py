"""Gauges of the trail: what waits to be sealed or archived, and what the chain must have been."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.db.models import F
from django.db.models.functions import Now

from recovery import runner
from recovery.clock import db_now
from recovery.models import ArchiveStatus, AuditArchive, AuditRecord, AuditSeal, Sample
from recovery.trail import gauges
from recovery.trail.archiving import due_seals
from tests.recovery.trail.records import (
    ARCHIVE,
    SEAL,
    archived,
    newest,
    ran,
    run_sql,
    sealed,
    written,
)
from tests.tables import Sql, let_plan, moment, plans_of, reads_at_most, store_many, text

pytestmark = pytest.mark.django_db(transaction=True)

DAY_S, HOUR_S = 86_400, 3_600
MANY, FEW = 20_000, 40


def value_of(gauge):
    """Return the one value of a gauge."""
    ((labels, value),) = gauge()
    assert labels == {}
    return value


def test_without_records_nothing_waits_and_there_is_no_seal():
    for gauge in (
        gauges.audit_unsealed_age_seconds,
        gauges.audit_archive_overdue_seconds,
        gauges.audit_seal_number,
        gauges.audit_seal_fingerprint,
    ):
        assert value_of(gauge) == 0.0


def test_oldest_record_in_no_seal_is_aged_until_it_is_sealed():
    sealed(days_ago=3)
    assert value_of(gauges.audit_unsealed_age_seconds) == 0.0
    written(days_ago=1)
    written()
    assert DAY_S <= value_of(gauges.audit_unsealed_age_seconds) < DAY_S + HOUR_S
    ran(SEAL)
    assert value_of(gauges.audit_unsealed_age_seconds) == 0.0


def test_record_that_committed_late_is_aged_too():
    (first,) = sealed()
    facts = {"actor": "a", "action": "late", "target_type": "t", "target_id": "x"}
    AuditRecord(pk=first + 2, **facts).save()
    ran(SEAL)
    AuditRecord(pk=first + 1, at=db_now() - timedelta(hours=2), **facts).save()
    assert 2 * HOUR_S <= value_of(gauges.audit_unsealed_age_seconds) < 3 * HOUR_S


def midnight(days_ago):
    """Return how many seconds ago the day of so many days ago began."""
    now = db_now()
    day = (now - timedelta(days=days_ago)).date()
    return (now - datetime.combine(day, datetime.min.time(), UTC)).total_seconds()


def test_records_are_overdue_from_the_end_of_the_last_of_their_days(settings):
    settings.AUDIT_HOT_DAYS = 90
    sealed(days_ago=90)
    assert value_of(gauges.audit_archive_overdue_seconds) == 0.0
    sealed(days_ago=93)
    expected = midnight(2)  # all of that day is past 90 days since then
    assert expected <= value_of(gauges.audit_archive_overdue_seconds) < expected + HOUR_S
    ran(ARCHIVE)
    assert value_of(gauges.audit_archive_overdue_seconds) == 0.0


@pytest.mark.parametrize("days_ago", [89, 90, 91, 92])
def test_what_the_job_would_take_is_overdue_and_nothing_else(settings, days_ago):
    settings.AUDIT_HOT_DAYS = 90
    sealed(days_ago=days_ago)
    due = due_seals((db_now() - timedelta(days=90)).date()).exists()
    assert (value_of(gauges.audit_archive_overdue_seconds) > 0) is due
    assert due is (days_ago > 90)


def test_records_that_are_not_sealed_are_not_overdue():
    written(days_ago=1_000)
    assert value_of(gauges.audit_archive_overdue_seconds) == 0.0


def test_archive_that_is_not_complete_is_overdue_since_it_was_begun():
    archived(days_ago=100)
    AuditArchive.objects.update(status=ArchiveStatus.WRITTEN, created_at=Now() - timedelta(hours=5))
    assert 5 * HOUR_S <= value_of(gauges.audit_archive_overdue_seconds) < 6 * HOUR_S
    ran(ARCHIVE)
    assert value_of(gauges.audit_archive_overdue_seconds) == 0.0


def test_altered_records_stay_overdue_though_the_job_runs():
    (pk,) = sealed(days_ago=100)
    run_sql("UPDATE recovery_auditrecord SET reason = 'other' WHERE id = %s", pk)
    assert ran(ARCHIVE).status == "failed"
    assert value_of(gauges.audit_archive_overdue_seconds) > 2 * DAY_S


def test_newest_seal_is_told_by_its_number_and_the_first_of_its_hash():
    sealed(2)
    sealed()
    seal = newest()
    assert value_of(gauges.audit_seal_number) == seal.number == 2
    assert f"{int(value_of(gauges.audit_seal_fingerprint)):012x}" == seal.hash[:12]


@pytest.mark.parametrize("start", ["ffffffffffff", "000000000001", "e38d7ea4c67f", "800000000000"])
def test_fingerprint_is_exact_where_it_is_scraped(client, settings, start):
    """Through sample, database and text: Prometheus reads the text as a float of 64 bits."""
    sealed()
    AuditSeal.objects.update(hash=start + "0" * 52)
    settings.METRICS_TOKEN = ""
    assert runner.run_job("metricsCollect").status == "ok"
    scraped = client.get("/metrics").content.decode()
    (found,) = re.findall(r"^audit_seal_fingerprint (\S+)$", scraped, re.MULTILINE)
    assert f"{int(float(found)):012x}" == start
    assert float(found).is_integer()


def test_age_grows_with_its_sample(client, settings):
    settings.METRICS_TOKEN = ""
    written(days_ago=1)
    assert runner.run_job("metricsCollect").status == "ok"
    Sample.objects.update(at=F("at") - timedelta(hours=2))
    scraped = client.get("/metrics").content.decode()
    (found,) = re.findall(r"^audit_unsealed_age_seconds (\S+)$", scraped, re.MULTILINE)
    assert DAY_S + 2 * HOUR_S <= float(found) < DAY_S + 3 * HOUR_S
    assert re.search(r"^audit_archive_overdue_seconds 0\.0$", scraped, re.MULTILINE)


@pytest.fixture
def long_history():
    """Store many records, seals and archives: most of it archived, nothing unfinished."""
    store_many(AuditRecord, MANY, actor="a", action="b", target_type="t", target_id=text("{n}"))
    store_many(
        AuditArchive,
        MANY // 50,
        name=text("{n}"),
        day=Sql(f"DATE({moment(f'n * {DAY_S}')})"),
        part=1,
        status="done",
        count=1, size=1, first_id=Sql("n"), last_id=Sql("n"),
        first_at=moment("n"), last_at=moment("n"), last_seal=Sql("n"), terms=b"",
    )  # fmt: skip
    first = AuditArchive.objects.order_by("id").values_list("id", flat=True)[0]
    store_many(
        AuditSeal,
        MANY,
        number=Sql("n"),
        day=Sql(f"DATE({moment(f'(n - n % 50) / 50 * {DAY_S}')})"),
        at=moment("n"), first_at=moment("n"), last_at=moment("n"),
        count=1, size=1,
        marks=b"12345678",
        hash=text("{n}"),
        archive=Sql(f"CASE WHEN n < {MANY // 2} THEN {first} + n % {MANY // 50} END"),
    )  # fmt: skip
    let_plan(AuditRecord, AuditArchive, AuditSeal)


@pytest.mark.mariadb
def test_long_history_costs_a_gauge_nothing(long_history):
    for gauge, indexes in (
        (gauges.audit_unsealed_age_seconds, {"PRIMARY"}),
        (
            gauges.audit_archive_overdue_seconds,
            {"auditseal_archive_day", "auditarchive_status_tier"},
        ),
        (gauges.audit_seal_number, {"PRIMARY"}),
        (gauges.audit_seal_fingerprint, {"PRIMARY"}),
    ):
        assert value_of(gauge) > 0
        found = set()
        for plan in plans_of(gauge, "recovery_audit"):
            assert not plan.scans, plan
            found |= plan.indexes
        assert found == indexes, gauge
        assert reads_at_most(FEW, gauge), gauge
