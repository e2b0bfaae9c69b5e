"""``/metrics``, ``/healthz`` and ``/readyz``."""

import json
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from recovery import metrics, probes, probing, registry, runner, states
from recovery.clock import db_now
from recovery.models import Job, Sample
from recovery.schedules import ensure_rows
from tests import servers
from tests.recovery.engine import NAME, register
from tests.recovery.sites import asked

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def get():
    """Return what asks as a scraper does: by address, with a host name nobody configured."""
    client = Client(HTTP_HOST="10.1.2.3:9100")
    return lambda path, **headers: client.get(path, headers=headers)


def exported(response):
    assert response.status_code == 200, response.content
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))):
        sample.value
        for family in text_string_to_metric_families(response.content.decode())
        for sample in family.samples
    }  # fmt: skip


def closed_port():
    """Return a port that nobody listens on, nor is given one of by the system."""
    return servers.free_port()


def lose_database(monkeypatch, tmp_path):
    """Point the probes' own connections to where no database is."""
    real = connection.copy

    def elsewhere(*args):
        lost = real(*args)
        if connection.vendor == "mysql":
            lost.settings_dict = {**lost.settings_dict, "HOST": "127.0.0.1", "PORT": closed_port()}
        else:
            lost.settings_dict = {**lost.settings_dict, "NAME": str(tmp_path / "no" / "file")}
        return lost

    monkeypatch.setattr(connection, "copy", elsewhere)


def test_healthz_asks_nobody(get, monkeypatch):
    monkeypatch.setattr(probing, "probe_connection", None)
    assert get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_take_any_host_and_scheme_and_only_reading(path, settings):
    settings.ALLOWED_HOSTS, settings.SECURE_SSL_REDIRECT = ["stock.example"], True
    client = Client(HTTP_HOST="10.1.2.3")
    assert client.get(path).status_code == 200
    assert client.head(path).status_code == 200
    assert client.post(path).status_code == 405
    assert client.get(path)["Cache-Control"] == "no-store"
    assert client.get("/admin/").status_code in (301, 400)


def test_ready_tells_of_database_migrations_redis_and_jobs(get, settings):
    ensure_rows()
    answer = get("/readyz")
    facts = answer.json()
    assert (answer.status_code, facts["ready"], facts["reasons"]) == (200, True, [])
    assert (facts["database"], facts["migrations"]) == ("ok", "ok")
    assert facts["redis"] == ("ok" if settings.REDIS_URL else "not configured")
    assert facts["jobs"]["metricsCollect"] == {
        "heartbeat_age_s": pytest.approx(0, abs=60), "limit_s": 45, "paused": False, "late": False,
    }  # fmt: skip


def test_not_ready_without_a_database(get, monkeypatch, tmp_path):
    lose_database(monkeypatch, tmp_path)
    answer = get("/readyz")
    facts = answer.json()
    assert (answer.status_code, facts["ready"], facts["database"]) == (503, False, "down")
    (reason,) = facts["reasons"]
    assert reason.startswith("the database does not answer: ")
    assert get("/healthz").status_code == 200


def test_not_ready_with_missing_migrations(get):
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'ledger'")
    try:
        answer = get("/readyz")
    finally:
        from django.core.management import call_command

        call_command("migrate", "ledger", fake=True, verbosity=0)
    facts = answer.json()
    assert answer.status_code == 503
    assert {name.partition(".")[0] for name in facts["migrations"]} == {"ledger"}
    assert "run manage.py migrate: ledger.0001_initial" in facts["reasons"][0]
    assert get("/readyz").status_code == 200


def test_empty_database_lacks_every_migration(get, monkeypatch, tmp_path):
    monkeypatch.setattr(probing.MigrationRecorder.Migration._meta, "db_table", "no_such_table")
    assert "recovery.0001_initial" in get("/readyz").json()["migrations"]


@pytest.mark.redis
def test_redis_outage_is_reported_and_stays_ready(get, settings):
    settings.REDIS_URL = f"redis://127.0.0.1:{closed_port()}/0"
    answer = get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["redis"].startswith("down: ")


@pytest.mark.parametrize(
    ("age_s", "paused", "status"),
    [(1_500, False, 200), (2_000, False, 503), (2_000, True, 200)],
)
@pytest.mark.usefixtures("long_periods")
def test_late_job_counts_only_where_asked(get, monkeypatch, age_s, paused, status):
    ensure_rows()
    register(monkeypatch)
    assert registry.get(NAME).period_s == 600
    Job.objects.filter(name=NAME).update(heartbeat_at=db_now() - timedelta(seconds=age_s))
    if paused:
        Job.objects.filter(name=NAME).pause()
    assert get("/readyz").status_code == 200
    answer = get("/readyz?jobs=1")
    assert answer.status_code == status
    if status == 503:
        assert answer.json()["reasons"][-1].startswith(f"job {NAME}: last heartbeat 2")


@pytest.mark.usefixtures("long_periods")
def test_job_that_never_ran_ages_from_when_its_row_was_made(get, monkeypatch):
    ensure_rows()
    register(monkeypatch)
    assert get("/readyz?jobs=1").status_code == 200
    Job.objects.filter(name=NAME).update(created_at=db_now() - timedelta(days=1))
    assert get("/readyz?jobs=1").json()["jobs"][NAME]["late"] is True
    Job.objects.filter(name=NAME).delete()
    assert get("/readyz?jobs=1").json()["reasons"][-1].startswith(f"job {NAME} was never set up")


def test_scrape_wants_the_token_that_is_set(get, settings):
    settings.METRICS_TOKEN = "s3cret"
    for header in ("", "s3cret", "Bearer", "Bearer wrong", "Basic s3cret", "Bearer s3cret\xff"):
        refused = get("/metrics", Authorization=header)
        assert (refused.status_code, refused["WWW-Authenticate"]) == (401, "Bearer")
    assert get("/metrics", Authorization="Bearer s3cret").status_code == 200
    settings.METRICS_TOKEN = ""
    assert get("/metrics").status_code == 200


def test_metrics_that_are_off_are_not_found(get, settings):
    settings.METRICS_ENABLED = False
    answer = get("/metrics")
    assert answer.status_code == 404
    assert b"METRICS_ENABLED=false" in answer.content


def test_scrape_shows_every_metric_of_the_contract(get):
    ensure_rows()
    runner.run_job("metricsCollect")
    found = exported(get("/metrics"))
    names = {name for name, *_ in found}
    assert names >= {
        "job_runs_total", "job_failures_total", "job_duration_seconds_bucket",
        "job_stuck_detected_total", "finalize_retry_attempts_total", "job_heartbeat_age_seconds",
        "job_lock_degraded", "outbox_entries", "outbox_oldest_pending_age_seconds",
        "outbox_oldest_due_age_seconds", "job_paused", "job_period_seconds",
        "outbox_posted_total", "outbox_post_latency_seconds_bucket", "split_orders",
        "finalize_recoveries_total", "finalize_duration_seconds_bucket",
        "django_db_execute_total", "django_http_requests_before_middlewares_total",
    }  # fmt: skip
    assert {key for key in found if key[0] == "outbox_entries"} == {
        ("outbox_entries", f"status={status}") for status in ("pending", "dead", "discarded")
    }
    states_of_orders = {key[1] for key in found if key[0] == "split_orders"}
    assert states_of_orders == {
        f"state={state}" for state in ("in_progress", "stuck", "failed", "quarantined")
    }
    assert found["metrics_database_up",] == 1


def test_scrape_tells_what_alarms_need_to_know_of_each_job(get):
    ensure_rows()
    Job.objects.filter(name="auditArchive").delete()
    Job.objects.filter(name="metricsCollect").pause()
    found = exported(get("/metrics"))
    assert found["job_paused", "job=metricsCollect"] == 1
    assert found["job_paused", "job=runRecoveryPlans"] == 0
    assert found["job_period_seconds", "job=auditArchive"] == 86_400
    assert ("job_heartbeat_age_seconds", "job=auditArchive") not in found, "it has no row"


def test_counters_of_jobs_and_codes_begin_at_zero(get):
    found = exported(get("/metrics"))
    assert ("job_failures_total", "job=recoverFinalizeStuck") in found
    assert ("outbox_failures_total", "code=account_closed") in found
    assert ("job_skipped_total", "job=metricsCollect", "reason=locked") in found


def test_scrape_goes_on_without_a_database(get, monkeypatch, tmp_path):
    lose_database(monkeypatch, tmp_path)
    found = exported(get("/metrics"))
    assert found["metrics_database_up",] == 0
    assert ("job_runs_total", "job=metricsCollect") in found
    assert not any(name == "outbox_entries" for name, *_ in found)


def test_ages_grow_while_their_sampler_is_dead(get, monkeypatch):
    monkeypatch.setattr(metrics, "_gauges", {})
    metrics.gauge("oldest_thing_age_seconds", ages=True)(list)
    metrics.gauge("things")(list)
    sampled_at = db_now() - timedelta(hours=1)
    for name, labels, value in (
        ("oldest_thing_age_seconds", "", 10), ("oldest_thing_age_seconds", '{"kind": "b"}', 0),
        ("things", "", 10), ("gauge_of_older_code", "", 1),
    ):  # fmt: skip
        Sample.objects.create(name=name, labels=labels, value=value, at=sampled_at)
    register(monkeypatch)
    Job.objects.update(heartbeat_at=sampled_at)
    found = exported(get("/metrics"))
    assert found["oldest_thing_age_seconds",] == pytest.approx(3_610, abs=60)
    assert found["oldest_thing_age_seconds", "kind=b"] == 0
    assert found["things",] == 10
    assert found["job_heartbeat_age_seconds", f"job={NAME}"] == pytest.approx(3_600, abs=60)
    assert found["metrics_sample_age_seconds",] == pytest.approx(3_600, abs=60)
    assert not any(name == "gauge_of_older_code" for name, *_ in found)


def test_scraper_may_ask_for_openmetrics(get):
    answer = get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer["Content-Type"].startswith("application/openmetrics-text")
    assert answer.content.endswith(b"# EOF\n")


def test_unreadable_counters_are_told(get, monkeypatch):
    def busy(_place):
        raise probes.tallies.TalliesBusyError("held")

    monkeypatch.setattr(probes.tallies, "read", busy)
    answer = get("/metrics")
    assert (answer.status_code, answer.content) == (503, b"the counters cannot be read: held\n")


def test_probe_reads_few_rows_over_a_connection_of_its_own(get, django_assert_num_queries):
    with django_assert_num_queries(0):
        get("/readyz")
        get("/metrics")


def test_probe_gives_up_in_seconds():
    with probing.probe_connection() as probe:
        options = probe.settings_dict["OPTIONS"]
        if probe.vendor == "mysql":
            names = ("connect_timeout", "read_timeout", "write_timeout")
            assert {options[name] for name in names} == {probing.PATIENCE_S}
        else:
            assert options["timeout"] == probing.PATIENCE_S
        assert states.heartbeat_ages(probe) == {}
    assert connection.settings_dict["OPTIONS"] != options


def has_run(text):
    """Tell whether a scrape counts a run of the job that collects metrics."""
    return re.search(r'^job_runs_total\{job="metricsCollect"\} [1-9]', text, re.MULTILINE)


def test_workers_host_answers_on_a_port_of_its_own(manage, eventually, tmp_path):
    port = servers.free_port()
    options = ("--metrics-port", str(port), "--metrics-host", "127.0.0.1")
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "JOB_METRICS_PERIOD_SEC": "5"}
    started = manage.start("qcluster", *options, env=env)
    eventually(lambda: has_run(asked(port, "/metrics")[1]))

    def ready():
        status, body = asked(port, "/readyz?jobs=1")
        return status == 200 and json.loads(body)["ready"]

    eventually(ready)
    assert asked(port, "/admin/")[0] == 404
    refused = manage("qcluster", *options)
    assert refused.returncode == 1
    assert f"--metrics-port {port} on 127.0.0.1 cannot be had" in refused.stderr
    assert manage("qcluster", "--metrics-port", "0").returncode == 2
    started.process.terminate()
    assert started.process.wait(90) == 0
    eventually(lambda: asked(port, "/healthz")[0] == 0)
