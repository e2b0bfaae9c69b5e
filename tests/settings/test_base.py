"""The settings as a whole: every typed key, the start of a process, the secret key."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from settings import archives, jobs, security
from settings.base import SQLITE_OPTIONS, database, kept_secret_key
from settings.env import Env

pytestmark = pytest.mark.once

PRODUCTION = {
    "DATABASE_URL": "mysql://user:hush@127.0.0.1/recovery",
    "REDIS_URL": "redis://127.0.0.1/0",
    "SECRET_KEY": "production-key-that-is-long-enough-and-random-0123456789",
    "METRICS_TOKEN": "bearer-of-the-scraper",
    "PROXY_COUNT": "1",
    "AUDIT_SEAL_KEYS": "a-key-of-the-seals-alone-0123456789",
    "AUDIT_ARCHIVE": "/var/lib/recovery-audit/warm",
    "AUDIT_COLD": "/var/lib/recovery-audit/cold",
}
WRONG = {
    "DEBUG": "maybe",
    "TRACING_ENABLED": "perhaps",
    "DATABASE_URL": "postgres://host/name",
    "REDIS_URL": "memcached://host",
    "TIME_ZONE": "Mars/Olympus",
    "LANGUAGE_CODE": "tlh",
    "DATABASE_READ_TIMEOUT_SEC": "0",
    "DATABASE_IDLE_TRANSACTION_SEC": "0",
    "REDIS_TIMEOUT_SEC": "31",
    "QCLUSTER_WORKERS": "0",
    "QCLUSTER_POLL_SEC": "0",
    "LOG_FORMAT": "xml",
    "LOG_LEVEL": "loud",
    "SPLIT_COMPLETION_WEBHOOK": "ftp://host/",
    "METRICS_ENABLED": "2",
    "DLQ_EDIT_ENABLED": "2",
    "LOGIN_FAILURE_LIMIT": "0",
    "LOGIN_COOLOFF_SEC": "0",
    "PROXY_COUNT": "-1",
    "SESSION_MAX_SEC": "59",
    "SESSION_IDLE_SEC": "59",
    "RECOVERY_FAULTPOINTS": "lease.acquired=explode",
    "AUDIT_SEAL_KEYS": "short",
    "AUDIT_ARCHIVE": "ftp://x",
    "AUDIT_COLD": "s3://",
    "AUDIT_S3_ENDPOINT": "ftp://x",
    "AUDIT_TRIGGERS": "perhaps",
    **{
        name: "-1"
        for name in vars(jobs)
        if re.match(r"(JOB|AUDIT|OUTBOX)_|SPLIT_.*_(SEC|FAILURES)$", name)
    },
}
KEY_LINE = re.compile(r"setting (\w+)=.* is not usable: expected (.+)")


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``manage.py`` with nothing but ``environment``."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "manage.py", *(arguments or ("check",))],
        cwd=settings.BASE_DIR,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


def test_every_key_of_the_jobs_is_in_the_table():
    typed = {name for name in vars(jobs) if name.isupper() and name[0] != "_"}
    assert typed - {"DAY_SEC", "METRICS_TOKEN", "RECOVERY_FAULTPOINTS_PATTERN"} <= WRONG.keys()


def test_every_key_of_who_gets_in_is_in_the_table():
    read = re.findall(r'env\.\w+\("(\w+)"', Path(security.__file__).read_text())
    assert set(read) <= WRONG.keys()


def test_every_key_of_the_archives_is_in_the_table():
    read = re.findall(r'env\.\w+\("(\w+)"', Path(archives.__file__).read_text())
    assert {*read, "AUDIT_ARCHIVE", "AUDIT_COLD"} <= WRONG.keys()


@pytest.mark.parametrize("key", ["AUDIT_SEAL_KEYS", "AUDIT_ARCHIVE"])
def test_wrong_secret_of_the_archives_is_never_shown(key):
    wrong = {"AUDIT_SEAL_KEYS": f"{'k' * 32},hush", "AUDIT_ARCHIVE": "s3://name:hush@bucket/x"}
    done = start(**PRODUCTION | {key: wrong[key]})
    assert done.returncode == 2
    assert f"setting {key}=" in done.stderr
    assert "hush" not in done.stdout + done.stderr


def test_wrong_values_of_every_key_stop_the_start_with_one_line_each():
    done = start(**PRODUCTION | WRONG)
    assert (done.returncode, done.stdout) == (2, "")
    found = [KEY_LINE.fullmatch(line) for line in done.stderr.splitlines()]
    assert all(found), done.stderr
    assert sorted(match[1] for match in found if match) == sorted(WRONG)


@pytest.mark.parametrize("key", ["JOB_OUTBOX_BATCH_SIZE", "DATABASE_URL", "TIME_ZONE"])
def test_one_wrong_value_stops_the_start_with_one_line(key):
    done = start(**PRODUCTION | {key: WRONG[key]})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"setting {key}={WRONG[key]!r} is not usable: expected ")


def test_misspelt_key_stops_the_start_with_one_line():
    done = start(**PRODUCTION, JOB_OUTBOX_MAX_ATTEMTPS="3")
    assert done.returncode == 2
    assert done.stderr == (
        "setting JOB_OUTBOX_MAX_ATTEMTPS is not known: did you mean JOB_OUTBOX_MAX_ATTEMPTS?\n"
    )


def test_more_than_one_drain_is_refused_on_sqlite(tmp_path):
    url = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    done = start(SECRET_KEY="x" * 50, DATABASE_URL=url, JOB_OUTBOX_DRAINS="2")
    assert done.returncode == 2
    assert done.stderr == (
        "setting JOB_OUTBOX_DRAINS='2' is not usable:"
        " expected 1 on SQLite, which has one writer at a time\n"
    )
    assert start(**PRODUCTION, JOB_OUTBOX_DRAINS="2").returncode == 0


def test_right_values_start(tmp_path):
    url = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    done = start(SECRET_KEY="x" * 50, DATABASE_URL=url, JOB_OUTBOX_BATCH_SIZE="10")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["DATABASE_URL", "REDIS_URL"])
def test_production_is_refused_without_a_secret_key(missing):
    environment = {k: v for k, v in PRODUCTION.items() if k not in (missing, "SECRET_KEY")}
    done = start(**environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("setting SECRET_KEY='' is not usable: expected a long random text")


def test_debugging_needs_no_secret_key():
    environment = {k: v for k, v in PRODUCTION.items() if k != "SECRET_KEY"}
    assert start(**environment, DEBUG="true").returncode == 0


@pytest.mark.parametrize("key", ["DATABASE_URL", "REDIS_URL"])
def test_password_of_a_wrong_address_is_never_shown(key):
    done = start(**PRODUCTION | {key: "nosuch://user:hush@host/name"})
    assert done.returncode == 2
    assert "hush" not in done.stdout + done.stderr


def test_unreachable_database_is_one_line_without_the_password():
    done = start("migrate", **PRODUCTION | {"DATABASE_URL": "mysql://user:hush@127.0.0.1:9/name"})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("the database refused: ")
    assert "hush" not in line


def test_secret_key_is_made_once_and_kept_for_its_owner_alone(tmp_path):
    path = tmp_path / "var" / "secret-key"
    first = kept_secret_key(path)
    assert len(first) >= 50
    assert kept_secret_key(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secret-key"]


def test_key_of_the_process_that_was_first_counts(tmp_path, monkeypatch):
    path = tmp_path / "secret-key"
    path.write_text("theirs")
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: self != path and exists(self))
    assert kept_secret_key(path) == "theirs"


def test_mysql_sessions_get_utc_and_read_committed():
    config = database("mysql://user:pw@host:3307/name?ssl_mode=REQUIRED")
    assert (config["HOST"], config["PORT"], config["NAME"]) == ("host", 3307, "name")
    assert config["OPTIONS"]["isolation_level"] == "read committed"
    assert "time_zone='+00:00'" in config["OPTIONS"]["init_command"]
    assert config["OPTIONS"]["ssl_mode"] == "REQUIRED"
    assert config["CONN_HEALTH_CHECKS"]


def test_limit_that_mariadb_alone_has_is_a_comment_to_mysql():
    command = database("mysql://user:pw@host/name")["OPTIONS"]["init_command"]
    to_mysql = re.sub(r"/\*M!.*?\*/", "", command)
    assert "idle_transaction_timeout=60" in command
    assert "idle" not in to_mysql
    assert to_mysql.strip().endswith("innodb_lock_wait_timeout=10")


def test_sqlite_writes_ahead_and_locks_at_begin(tmp_path):
    config = database(f"sqlite:///{tmp_path / 'new' / 'db.sqlite3'}")
    assert config["OPTIONS"] == SQLITE_OPTIONS
    assert (tmp_path / "new").is_dir()


def test_deployment_check_has_nothing_to_say():
    done = start("check", "--deploy", "--fail-level", "WARNING", **PRODUCTION)
    assert done.returncode == 0, done.stderr


def test_both_tiers_in_one_place_stop_the_start():
    done = start(**PRODUCTION | {"AUDIT_COLD": PRODUCTION["AUDIT_ARCHIVE"]})
    assert done.returncode == 1
    assert "recovery.E016" in done.stderr


def test_deployment_check_warns_of_fault_points():
    done = start(
        "check", "--deploy", "--fail-level", "WARNING",
        **PRODUCTION, RECOVERY_FAULTPOINTS="lease.acquired=crash",
    )  # fmt: skip
    assert done.returncode == 1
    assert "recovery.W002" in done.stderr


def test_no_setting_is_read_past_the_typed_look_ups():
    sources = [*Path(settings.BASE_DIR, "settings").glob("*.py")]
    readers = [path.name for path in sources if "os.environ" in path.read_text()]
    # metrics.py writes it: the only way to tell prometheus_client. reference.py passes PATH on.
    assert sorted(readers) == ["env.py", "metrics.py", "reference.py", "wsgi.py"]


def test_unknown_keys_of_others_do_not_stop_the_start():
    Env({"HOSTNAME": "x", "SPLIT_BRAIN": "1"}).finish()
