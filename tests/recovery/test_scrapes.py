"""Scrapes of real servers: several processes and hosts, strange requests, tokens, no directory."""

import shutil
import subprocess
import threading
from itertools import pairwise

import pytest
from django.conf import settings
from django.db import connection

from recovery.models import JobRun
from tests import servers
from tests.faults.clusters import Cluster
from tests.recovery.sites import BEARER, TOKEN, Site, asked, series, status_of
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

LOGIN = "/admin/login/"
BY_VIEW = "django_http_requests_total_by_view_transport_method_total"
BY_STATUS = "django_http_responses_total_by_status_view_method_total"
LOGINS = (BY_VIEW, "GET", "http", "admin:login")
NO_SCRAPE = (0, 503)
"""A worker was killed over it; another one held the counters for seconds."""
COUNTERS = ("_total", "_count", "_bucket", "_sum")


LOOK = """
from django.core.cache import cache
cache.set("a", 1)
for key in ("a", "a", "b"):
    cache.get(key)
"""


@pytest.fixture
def site(manage, tmp_path):
    """Return a site that counts in a directory of its own."""
    return Site(manage, tmp_path / "counters")


def test_requests_statements_and_the_cache_are_counted_as_they_happen(site, manage):
    site.scrape()
    before = site.scrape()
    for _ in range(3):
        assert site.ask(LOGIN)[0] == 200
    site.ask("/nosuch")
    assert manage("shell", "--verbosity", "0", "-c", LOOK, env=site.more).returncode == 0
    found = site.scrape()
    assert found[LOGINS] == 3
    assert found[BY_STATUS, "GET", "200", "admin:login"] == 3
    assert found[BY_STATUS, "GET", "404", "<unnamed view>"] == 1
    assert found["django_http_requests_before_middlewares_total",] == 4
    kept = "redis" if settings.REDIS_URL else "locmem"
    names = (
        "django_cache_get_total",
        "django_cache_get_hits_total",
        "django_cache_get_misses_total",
    )
    assert [found[name, kept] for name in names] == [3, 2, 1]
    vendor = connection.vendor
    statements = ("django_db_execute_total", "default", vendor)
    assert found[statements] > before[statements]
    assert found["django_db_new_connections_total", "default", vendor] > 0
    assert found["django_db_query_duration_seconds_count", "default", vendor] == found[statements]


def test_what_is_sent_from_outside_makes_no_series(site):
    def send(number):
        strange = {
            "Content-Type": f"application/x{number}",
            "X-Requested-With": f"X{number}",
            "X-Forwarded-Proto": f"p{number}",
            "Accept-Language": f"x{number}",
        }
        for method, path, headers in (
            (f"FOO{number}", LOGIN, {}), (f"M{number}X", f"/no/{number}", {}),
            ("GET", f"/no/{number}", {}), ("GET", f"/admin/splits/lot/{number}/change/", {}),
            ("GET", f"/?{number}=1", {}), ("GET", LOGIN, {"Host": f"h{number}.example"}),
            ("GET", LOGIN, strange), ("POST", LOGIN, strange), ("GET", f"/static/{number}.js", {}),
        ):  # fmt: skip
            assert site.ask(path, method, headers)[0] != 0

    for number in range(2):
        send(number)
        site.scrape()
    before = site.scrape()
    for number in range(100, 220):
        send(number)
    found = site.scrape()
    assert found[LOGINS] > before[LOGINS]
    assert found.keys() == before.keys()


def scraped(site):
    """Return a scrape; None: it met a worker that was killed, or had to wait too long."""
    status, body = site.ask("/metrics", headers=BEARER)
    assert status in (200, *NO_SCRAPE), body
    return series(body) if status == 200 else None


def falls(earlier, later):
    """Return what counts less in the later scrape."""
    return {
        key: (value, later.get(key)) for key, value in earlier.items()
        if key[0].endswith(COUNTERS) and later.get(key, -1) < value
    }  # fmt: skip


def test_fifty_scrapes_never_fall_while_processes_are_killed_and_merged(site, manage):
    cluster = Cluster(manage.start("qcluster", "--json", env=site.more))
    scrapes, logins, stop = [], 0, threading.Event()

    def scrape_too():
        while not stop.is_set():
            assert site.ask("/metrics", headers=BEARER)[0] in (200, *NO_SCRAPE)

    others = [threading.Thread(target=scrape_too) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for number in range(50):
            if number % 10 == 5:
                site.kill_worker()
            if number == 25:
                worker = JobRun.objects.filter(pid__in=cluster.workers()).first()
                cluster.kill(worker.pid if worker else cluster.workers()[0])
            logins += site.ask(LOGIN)[0] == 200
            scrapes.append(eventually(lambda: scraped(site)))
    finally:
        stop.set()
        for other in others:
            other.join()
    assert [falls(*pair) for pair in pairwise(scrapes) if falls(*pair)] == []
    assert scrapes[-1][LOGINS] == logins > 40
    eventually(lambda: site.scrape()["job_runs_total", "metricsCollect"] >= 1)
    cluster.started.kill_all()
    manage.started.remove(cluster.started)


def test_counters_go_on_after_a_restart_and_begin_at_zero_in_a_new_directory(
    site, manage, tmp_path
):
    site.ask(LOGIN)
    before = site.scrape()
    site.stop()
    site.start()
    site.ask(LOGIN)
    found = site.scrape()
    assert falls(before, found) == {}
    assert found[LOGINS] == before[LOGINS] + 1 == 2
    fresh = Site(manage, tmp_path / "others")
    assert LOGINS not in fresh.scrape()
    assert fresh.scrape()["job_runs_total", "metricsCollect"] == 0


def test_each_host_shows_its_own_and_together_they_are_the_truth(site, manage, tmp_path):
    other = Site(manage, tmp_path / "others")
    for host, times in ((site, 2), (other, 3)):
        for _ in range(times):
            assert host.ask(LOGIN)[0] == 200
    assert [host.scrape()[LOGINS] for host in (site, other)] == [2, 3]


def test_directory_that_is_deleted_is_made_again_and_counted_in(site, tmp_path):
    site.ask(LOGIN)
    shutil.rmtree(tmp_path / "counters")
    site.scrape()

    def counts_again():
        site.ask(LOGIN)
        return site.scrape().get(LOGINS, 0) >= 2

    eventually(counts_again)


def wrong_tokens():
    """Return lines of a request that must be refused."""
    right = TOKEN.encode()
    yield []
    for header in (
        b"", b" ", b"Bearer", b"Bearer ", b"Bearer  ", b"Bearer wrong", b"Basic " + right, right,
        b"Bearer " + right + b"\xff", b"Bearer \xe6\x9c\xa8", b"\xff\xfe", b"Bearer\t" + right,
        b"Bearer " + right + b" " + right, b"Bearer " + right.upper(), b"Bearer " + right[:-1],
    ):  # fmt: skip
        yield [b"Authorization: " + header]
    yield [b"Authorization: Bearer wrong", b"Authorization: Bearer " + right]
    yield [b"Authorization: Bearer " + right, b"Authorization: Bearer wrong"]
    yield [b"Cookie: token=" + right, b"X-Token: " + right]


@pytest.fixture(params=["gunicorn", "a workers' host"])
def port(request, manage, tmp_path):
    """Return where /metrics wants a token."""
    if request.param == "gunicorn":
        return Site(manage, tmp_path).port
    port = servers.free_port()
    options = ("--metrics-port", str(port), "--metrics-host", "127.0.0.1")
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "METRICS_TOKEN": TOKEN}
    manage.start("qcluster", *options, env=environment)
    eventually(lambda: asked(port, "/healthz")[0] == 200)
    return port


def test_scrape_wants_the_token_whatever_the_header_holds(port):
    def status(*lines, target=b"/metrics"):
        return status_of(port, b"GET " + target + b" HTTP/1.1", b"Host: x", *lines)

    for lines in wrong_tokens():
        assert status(*lines) == 401, lines
    for name in (b"token", b"access_token", b"METRICS_TOKEN"):
        assert status(target=b"/metrics?" + name + b"=" + TOKEN.encode()) == 401
    for scheme in (b"Bearer", b"bearer", b"BEARER"):
        assert status(b"Authorization: " + scheme + b" " + TOKEN.encode()) == 200


def test_token_may_be_of_any_letters(manage, tmp_path):
    site = Site(manage, tmp_path, METRICS_TOKEN="木-secret")
    request = (b"GET /metrics HTTP/1.1", b"Host: x")
    assert status_of(site.port, *request, "Authorization: Bearer 木-secret".encode()) == 200
    assert status_of(site.port, *request, "Authorization: Bearer 木".encode()) == 401


def test_workers_that_are_recycled_all_the_time_lose_no_run(manage, tmp_path):
    port = servers.free_port()
    options = ("--metrics-port", str(port), "--metrics-host", "127.0.0.1")
    environment = {
        "DJANGO_SETTINGS_MODULE": "tests.recovery.recycling", "JOB_METRICS_PERIOD_SEC": "1",
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "JOB_OUTBOX_PERIOD_SEC": "1",
    }  # fmt: skip
    cluster = Cluster(manage.start("qcluster", "--json", *options, env=environment), complete=False)

    def runs(name):
        status, body = asked(port, "/metrics")
        return series(body).get(("job_runs_total", name), 0) if status == 200 else 0

    processes = set()

    def have_recycled():
        processes.update(JobRun.objects.values_list("pid", flat=True))
        return len(processes) > 2 * settings.Q_CLUSTER["workers"]

    eventually(have_recycled, deadline_s=120)
    eventually(lambda: runs("metricsCollect") > 0)
    eventually(lambda: len(list(tmp_path.glob("*.db"))) < 6 * settings.Q_CLUSTER["workers"])
    cluster.started.signal(15)
    cluster.started.finish()
    ended = JobRun.objects.exclude(status="running").filter(job_id="metricsCollect").count()
    from recovery import tallies

    (total,) = (
        sample.value for metric in tallies.read(tmp_path) for sample in metric.samples
        if (sample.name, sample.labels.get("job")) == ("job_runs_total", "metricsCollect")
    )  # fmt: skip
    assert total == ended


def test_promtool_finds_nothing_to_say(site, manage):
    assert manage("run_job", "metricsCollect", env=site.more).returncode == 0
    site.ask(LOGIN)
    _status, text = site.ask("/metrics", headers=BEARER)
    command = [servers.binary("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    described = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    typed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert described == typed
    assert "_created" not in text


SWITCHED_OFF = """
import json, os
from pathlib import Path
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from prometheus_client import REGISTRY, values
from recovery import jobs, metrics, tallies
from recovery.models import JobRun
from recovery.runner import run_job
with CaptureQueriesContext(connection) as seen:
    jobs.metrics_collect(None)
outcome = run_job("metricsCollect")
print(json.dumps({
    "middleware": [it for it in settings.MIDDLEWARE if "prometheus" in it or "traffic" in it],
    "apps": [name for name in settings.INSTALLED_APPS if "prometheus" in name],
    "engine": connection.settings_dict["ENGINE"],
    "cache": settings.CACHES["default"]["BACKEND"],
    "directory": Path(os.environ["WANTED"]).exists(),
    "shared": str(tallies.directory()),
    "values": values.ValueClass.__name__,
    "statements": len(seen),
    "outcome": [outcome.status, outcome.result],
    "counted": REGISTRY.get_sample_value("job_runs_total", {"job": "metricsCollect"}) or 0,
}))
"""


def test_switched_off_metrics_cost_nothing(manage, tmp_path):
    place = tmp_path / "counters"
    off = {"METRICS_ENABLED": "false", "WANTED": str(place)}
    directory = {"PROMETHEUS_MULTIPROC_DIR": str(place)}
    done = manage("shell", "--verbosity", "0", "-c", SWITCHED_OFF, env=off | directory)
    redis = "django_redis.cache.RedisCache"
    memory = "django.core.cache.backends.locmem.LocMemCache"
    assert done.json() == {
        "middleware": [], "apps": [], "directory": False, "shared": "None", "statements": 0,
        "engine": f"django.db.backends.{connection.vendor.replace('sqlite', 'sqlite3')}",
        "cache": redis if settings.REDIS_URL else memory, "values": "MutexValue",
        "outcome": ["ok", {}], "counted": 0,
    }, done.stderr  # fmt: skip
    site = Site(manage, place, METRICS_ENABLED="false")
    assert site.ask(LOGIN)[0] == 200
    assert site.ask("/metrics", headers=BEARER)[0] == 404
    assert not place.exists()
