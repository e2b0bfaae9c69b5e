"""System checks of the configuration: what provokes each finding, and nothing else does."""

import copy
from types import SimpleNamespace

import pytest
from django.core.checks import CheckMessage
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from recovery import registry
from recovery.checks import deployment
from recovery.checks.configuration import check_queue, check_settings, check_stack
from recovery.checks.deployment import check_deployment
from splits.checks import check_finalization

MARIADB = "mysql://user:password@127.0.0.1/recovery"
REDIS = "redis://127.0.0.1/0"


def only(found: list[CheckMessage], *named: str) -> str | None:
    """Return the id of the only finding, None of no finding; its message names ``named``."""
    if not found:
        return None
    (message,) = found
    assert message.hint
    for name in named:
        assert name in message.msg
    return message.id


def test_configuration_of_the_tests_is_sound():
    assert check_queue(None) == []
    assert check_settings(None) == []
    assert check_finalization(None) == []
    assert check_stack(None) == []


@pytest.mark.parametrize(
    ("retry", "found"), [(89, "recovery.E001"), (90, "recovery.E001"), (91, None)]
)
def test_tasks_must_not_be_retried_while_they_run(settings, retry, found):
    settings.Q_CLUSTER = settings.Q_CLUSTER | {"timeout": 90, "retry": retry}
    assert only(check_queue(None), f"retry={retry}", "timeout=90") == found


@pytest.mark.parametrize(("timeout", "found"), [(35, "recovery.E002"), (36, None)])
def test_tasks_must_not_be_killed_within_their_time_budget(settings, timeout, found):
    settings.JOB_TIME_BUDGET_SEC, settings.JOB_LOCK_TTL_SEC = 20, 15
    settings.Q_CLUSTER = settings.Q_CLUSTER | {"timeout": timeout, "retry": 1_000}
    assert only(check_queue(None), f"JOB_TASK_TIMEOUT_SEC={timeout}") == found


@pytest.mark.parametrize(("missing", "found"), [(1, "recovery.E003"), (0, None)])
def test_every_job_needs_a_worker(settings, missing, found):
    workers = len(registry.all_jobs()) - missing
    settings.Q_CLUSTER = settings.Q_CLUSTER | {"workers": workers}
    assert only(check_queue(None), f"QCLUSTER_WORKERS={workers}") == found


@pytest.mark.parametrize(("timeout", "found"), [(15, "recovery.E004"), (14.9, None)])
def test_slow_endpoint_must_not_cost_the_lease(settings, timeout, found):
    settings.SPLIT_COMPLETION_TIMEOUT_SEC, settings.JOB_LOCK_TTL_SEC = timeout, 15
    assert only(check_finalization(None), f"SPLIT_COMPLETION_TIMEOUT_SEC={timeout}") == found


def test_our_qcluster_must_win(settings):
    settings.INSTALLED_APPS = ["django_q", "recovery"]
    assert only(check_settings(None), "django_q", "INSTALLED_APPS") == "recovery.E005"
    settings.INSTALLED_APPS = ["recovery", "django_q"]
    assert check_settings(None) == []


@pytest.mark.parametrize(
    ("url", "patience", "found"),
    [(REDIS, 15, "recovery.E009"), (REDIS, 14.9, None), ("", 15, None)],
)
def test_hanging_redis_must_not_cost_the_lease(settings, url, patience, found):
    settings.REDIS_URL, settings.JOB_LOCK_TTL_SEC = url, 15
    settings.REDIS_TIMEOUT_SEC = patience
    assert only(check_settings(None), f"REDIS_TIMEOUT_SEC={patience}") == found


@pytest.mark.parametrize(("threshold", "found"), [(35, "recovery.W001"), (36, None)])
def test_threshold_must_be_longer_than_a_step_may_take(settings, threshold, found):
    settings.SPLIT_COMPLETION_TIMEOUT_SEC, settings.JOB_LOCK_TTL_SEC = 5, 15
    settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC = threshold
    named = f"JOB_FINALIZE_STUCK_THRESHOLD_SEC={threshold}"
    assert only(check_finalization(None), named) == found


@pytest.mark.parametrize(
    ("url", "patience", "found"),
    [(MARIADB, 90, "recovery.W003"), (MARIADB, 89, None), ("", 90, None)],
)
def test_run_that_waits_for_a_hanging_database_must_be_able_to_give_up(
    settings, url, patience, found
):
    settings.DATABASE_URL = url
    settings.DATABASE_READ_TIMEOUT_SEC = patience
    settings.Q_CLUSTER = settings.Q_CLUSTER | {"timeout": 90}
    assert only(check_settings(None), f"DATABASE_READ_TIMEOUT_SEC={patience}") == found


@pytest.mark.parametrize(("ttl", "found"), [(31, "recovery.W004"), (30, None)])
def test_killed_worker_must_not_make_its_job_late(settings, ttl, found):
    settings.JOB_OUTBOX_PERIOD_SEC, settings.JOB_LOCK_TTL_SEC = 10, ttl
    settings.JOB_PLANS_PERIOD_SEC = 15
    named = ("processLedgerOutbox", "JOB_OUTBOX_PERIOD_SEC", f"JOB_LOCK_TTL_SEC={ttl}")
    assert only(check_settings(None), *named) == found


@pytest.mark.parametrize(("base", "found"), [(1_801, "recovery.W005"), (1_800, None)])
def test_backoff_must_be_able_to_grow(settings, base, found):
    settings.JOB_BACKOFF_BASE_SEC, settings.JOB_BACKOFF_CAP_SEC = base, 1_800
    assert only(check_settings(None), f"JOB_BACKOFF_BASE_SEC={base}") == found


@pytest.mark.parametrize(
    ("database", "cache", "found"),
    [
        (MARIADB, REDIS, None),
        ("", "", None),
        ("sqlite:////srv/db.sqlite3", "", None),
        (MARIADB, "", "recovery.W006"),
        ("", REDIS, "recovery.W007"),
        ("sqlite:////srv/db.sqlite3", REDIS, "recovery.W007"),
    ],
)
def test_database_and_redis_belong_together(settings, database, cache, found):
    settings.DATABASE_URL, settings.REDIS_URL = database, cache
    assert only(check_stack(None), "REDIS_URL") == found


@pytest.mark.parametrize(
    ("enabled", "shared", "found"),
    [(True, False, "recovery.W014"), (True, True, None), (False, False, None)],
)
def test_processes_must_have_a_place_to_count_together(settings, enabled, shared, found):
    settings.METRICS_ENABLED, settings.METRICS_SHARED = enabled, shared
    assert only(check_settings(None), str(settings.METRICS_DIR)) == found


@pytest.mark.parametrize(("window", "found"), [(900, "recovery.W015"), (901, None)])
def test_window_must_be_long_enough_for_an_order_to_be_quarantined(settings, window, found):
    settings.JOB_STUCK_ALERT_THRESHOLD, settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC = 3, 300
    settings.JOB_STUCK_ALERT_WINDOW_SEC = window
    assert only(check_finalization(None), f"JOB_STUCK_ALERT_WINDOW_SEC={window}") == found


@pytest.fixture
def production(settings) -> SimpleNamespace:
    """Set what a sound production sets."""
    settings.DATABASE_URL = MARIADB
    settings.REDIS_URL = "rediss://:hush@cache.example:6379/0"
    settings.METRICS_ENABLED, settings.METRICS_TOKEN = True, "bearer-of-the-scraper"
    settings.DEMO = False
    settings.ALLOWED_HOSTS = ["stock.example.org", ".example.net"]
    settings.LOG_FORMAT = "auto"
    settings.PROXY_COUNT = 1
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    settings.AUDIT_SEAL_KEYS = ["s" * 32]
    keep_archives_in(settings, "s3://archive/warm", "s3://archive/cold")
    return settings


def keep_archives_in(settings, warm, cold):
    """Keep both tiers of archives in these places, as the environment would name them."""
    stores = copy.deepcopy(settings.STORAGES)
    for alias, place in (("audit_archive", warm), ("audit_cold", cold)):
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        stores[alias] = (
            {"BACKEND": "storages.backends.s3.S3Storage",
             "OPTIONS": {"bucket_name": bucket, "location": prefix}}
            if place.startswith("s3://")
            else {"BACKEND": "django.core.files.storage.FileSystemStorage",
                  "OPTIONS": {"location": place}}
        )  # fmt: skip
    settings.STORAGES = stores


@pytest.mark.parametrize(
    ("warm", "cold", "found"),
    [
        ("/srv/a", "/srv/b", None),
        ("/srv/a", "/srv/a/", "recovery.E016"),
        ("/srv/a", "/srv/b/../a", "recovery.E016"),
        ("/srv/a", "/srv/a/cold", None),
        ("s3://archive/a", "s3://archive/b", None),
        ("s3://archive/a", "s3://archive/a", "recovery.E016"),
        ("s3://archive/a", "s3://other/a", None),
        ("/srv/a", "s3://archive/a", None),
    ],
)
def test_tiers_of_archives_need_a_place_each(settings, warm, cold, found):
    keep_archives_in(settings, warm, cold)
    assert only(check_settings(None), *(["AUDIT_COLD"] if found else [])) == found


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("/dev/shm/recovery/audit", "recovery.W033"),
        ("/proc/recovery/audit", None),  # no disk, but not memory either
        ("s3://archive/warm", None),
    ],
)
@pytest.mark.parametrize("tier", ["AUDIT_ARCHIVE", "AUDIT_COLD"])
def test_archives_in_memory_are_told(production, tier, place, found):
    other = "s3://archive/other"
    both = (place, other) if tier == "AUDIT_ARCHIVE" else (other, place)
    keep_archives_in(production, *both)
    assert only(check_deployment(None), tier) == found


def test_where_mounts_are_not_told_nothing_is_said_of_archives(production, monkeypatch, tmp_path):
    monkeypatch.setattr(deployment, "MOUNTS", tmp_path / "none")
    keep_archives_in(production, "/dev/shm/recovery/warm", "/dev/shm/recovery/cold")
    assert check_deployment(None) == []


@pytest.mark.parametrize("place", ["SECRET_KEY", "SECRET_KEY_FALLBACKS", "METRICS_TOKEN"])
def test_keys_of_seals_are_no_secrets_of_others(production, place):
    key = "k" * 50
    setattr(production, place, [key] if place.endswith("S") else key)
    assert check_deployment(None) == []
    production.AUDIT_SEAL_KEYS = ["s" * 32, key]
    (found,) = check_deployment(None)
    assert (found.id, key in f"{found.msg} {found.hint}") == ("recovery.W032", False)


def test_site_without_a_proxy_needs_no_count_of_them(production):
    production.PROXY_COUNT, production.SECURE_PROXY_SSL_HEADER = 0, None
    assert check_deployment(None) == []


def test_sound_production_is_not_warned(production):
    assert check_deployment(None) == []


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [
        ("RECOVERY_FAULTPOINTS", "lease.acquired=crash", "recovery.W002"),
        ("ALLOWED_HOSTS", ["stock.example.org", "*"], "recovery.W020"),
        ("METRICS_TOKEN", "", "recovery.W021"),
        ("LOG_FORMAT", "text", "recovery.W025"),
        ("PROXY_COUNT", 0, "recovery.W026"),
        ("PROXY_COUNT", 2, None),
        ("LOG_FORMAT", "json", None),
        ("TRACING_ENABLED", True, "recovery.W027"),
        ("METRICS_TOKEN", "x" * 15, "recovery.W028"),
        ("METRICS_TOKEN", "x" * 16, None),
        ("ALLOWED_HOSTS", [".org"], "recovery.W029"),
        ("ALLOWED_HOSTS", ["stock.example.org", "."], "recovery.W029"),
        ("ALLOWED_HOSTS", [".example.org", "stock"], None),
        ("DEMO", True, "recovery.W031"),
        ("AUDIT_SEAL_KEYS", [], "recovery.W032"),
    ],
)
def test_what_is_open_or_breaks_is_told(production, setting, value, found):
    setattr(production, setting, value)
    assert only(check_deployment(None), setting) == found


@pytest.mark.parametrize("token", ["", "short"])
def test_metrics_that_are_off_need_no_token(production, token):
    production.METRICS_ENABLED, production.METRICS_TOKEN = False, token
    assert check_deployment(None) == []


def test_spans_that_have_a_collector_are_well(production, monkeypatch):
    production.TRACING_ENABLED = True
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.example:4318")
    assert check_deployment(None) == []


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("rediss://cache.example/0", "recovery.W022"),
        ("rediss://user@cache.example/0", "recovery.W022"),
        ("rediss://cache.example/0?password=hush", None),
        ("redis://:hush@cache.example/0", "recovery.W023"),
        ("redis://:hush@10.0.0.7/0", "recovery.W023"),
        ("redis://localhost/0", None),
        ("redis://127.0.0.1/0", None),
        ("redis://[::1]:6379/0", None),
        ("unix:///run/redis.sock", None),
        ("", None),
    ],
)
def test_redis_on_another_host_needs_password_and_encryption(production, url, found):
    production.REDIS_URL = url
    named = "cache.example" if "cache.example" in url else "Redis on 10.0.0.7"
    assert only(check_deployment(None), *([named] if found else [])) == found


@pytest.mark.parametrize("place", ["SECRET_KEY", "SECRET_KEY_FALLBACKS"])
def test_scraper_must_not_hold_what_signs_tasks(production, place):
    key = "k" * 50
    setattr(production, place, key if place == "SECRET_KEY" else [key])
    assert check_deployment(None) == []
    production.METRICS_TOKEN = key
    (found,) = check_deployment(None)
    assert (found.id, found.is_serious(), key in found.msg) == ("recovery.E015", True, False)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("mysql://root:hush@10.0.0.7/recovery", "recovery.W030"),
        ("mysql://recovery@10.0.0.7/recovery", "recovery.W030"),
        ("mysql://recovery:@10.0.0.7/recovery", "recovery.W030"),
        ("mysql://10.0.0.7/recovery", "recovery.W030"),
        ("mysql://recovery:hush@10.0.0.7/recovery", None),
        ("mysql://recovery@localhost/recovery?unix_socket=/run/mysqld/mysqld.sock", None),
    ],
)
def test_database_needs_a_login_of_its_own_with_a_password(production, url, found):
    production.DATABASE_URL = url
    assert (
        only(check_deployment(None), *(["root" if "root" in url else "without"] * bool(found)))
        == found
    )


def test_open_redis_is_told_both(production):
    production.REDIS_URL = "redis://cache.example/0"
    assert [it.id for it in check_deployment(None)] == ["recovery.W022", "recovery.W023"]


@pytest.mark.parametrize("url", ["", "sqlite:////srv/db.sqlite3"])
def test_file_is_no_database_for_production(production, url):
    production.DATABASE_URL = url
    assert only(check_deployment(None), "SQLite") == "recovery.W024"


def test_no_message_shows_a_password(production):
    production.REDIS_URL = "redis://:hush@cache.example/0"
    (found,) = check_deployment(None)
    assert "hush" not in f"{found.msg} {found.hint}"


def test_findings_stop_a_command(settings):
    settings.Q_CLUSTER = settings.Q_CLUSTER | {"retry": 1}
    with pytest.raises(SystemCheckError, match=r"recovery\.E001"):
        call_command("check")
