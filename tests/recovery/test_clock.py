"""The database's clock is UTC, whatever the server's own zone, and compares with rows."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now

from recovery.clock import db_now, seconds_from_now
from recovery.models import AuditRecord, Job

pytestmark = pytest.mark.django_db


def job(**moments: object) -> Job:
    row = Job.objects.create(name="tested", **moments)
    row.refresh_from_db()
    return row


def one(sql: str) -> object:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def test_clock_is_utc():
    assert abs(db_now() - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.mariadb
def test_clock_is_utc_on_a_server_eight_hours_ahead():
    ahead_s = one("SELECT @@global.time_zone = '+08:00'")
    assert ahead_s == 1, "the server of these tests keeps the time of Shanghai"
    assert one("SELECT TIMESTAMPDIFF(MINUTE, UTC_TIMESTAMP(), NOW())") == 0
    assert abs(db_now() - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.mariadb
def test_sessions_are_read_committed_strict_and_utf8mb4():
    assert one("SELECT @@session.tx_isolation") == "READ-COMMITTED"
    assert one("SELECT @@session.time_zone") == "+00:00"
    assert one("SELECT @@character_set_connection") == "utf8mb4"
    assert "STRICT_TRANS_TABLES" in str(one("SELECT @@session.sql_mode"))


def test_default_of_a_column_is_the_same_clock():
    before = db_now()
    row = job()
    assert before <= row.created_at <= db_now()


def test_clock_does_not_run_backwards():
    moments = [db_now() for _ in range(50)]
    assert moments == sorted(moments)


@pytest.mark.parametrize("seconds", [0, 1, 0.25, 3_600, 86_400 * 400, -1, -0.25, -86_400 * 400])
def test_moments_are_computed_by_the_database(seconds):
    before = db_now()
    row = job(lease_expires_at=seconds_from_now(seconds))
    after = db_now()
    shift, tick = timedelta(seconds=seconds), timedelta(milliseconds=1)  # SQLite's clock
    assert before + shift - tick <= row.lease_expires_at <= after + shift + tick


@pytest.mark.parametrize(("seconds", "is_past"), [(-0.002, True), (60, False)])
def test_rows_compare_with_now(seconds, is_past):
    job(lease_expires_at=seconds_from_now(seconds))
    assert Job.objects.filter(lease_expires_at__lte=Now()).exists() is is_past


def test_moment_on_the_full_second_compares_with_now():
    full = db_now().replace(microsecond=0)
    job(lease_expires_at=full)
    assert Job.objects.filter(lease_expires_at__lte=Now()).exists()
    assert Job.objects.filter(lease_expires_at__lte=full).exists()
    assert not Job.objects.filter(lease_expires_at__lt=full).exists()
    Job.objects.update(lease_expires_at=full + timedelta(hours=1))
    assert Job.objects.filter(lease_expires_at__gt=Now()).exists()


def test_python_moment_and_database_moment_compare():
    job(lease_expires_at=db_now() - timedelta(seconds=1), heartbeat_at=Now())
    assert Job.objects.filter(lease_expires_at__lt=db_now()).exists()
    assert AuditRecord.objects.filter(at__gt=db_now()).count() == 0
