"""The rungs of lock, heartbeat and queue: Redis breaks in every way, and the jobs keep time."""

import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from itertools import pairwise

import pytest
import redis
from django_q.models import OrmQ

from ledger.models import Transaction
from ledger.outbox import JOB
from recovery import link, runner, wakeups
from recovery.clock import db_now
from recovery.models import JobRun
from recovery.registry import Batch
from tests import servers
from tests.faults.installation import csv_text, plan_rows
from tests.faults.ledger import held, posted, publish_one
from tests.faults.proxy import Proxy
from tests.faults.work import all_done, each_was_worked_once, no_runs_overlap
from tests.logs import count_events
from tests.recovery.engine import NAME, client, fork, register
from tests.waiting import eventually
from tests.web import ask

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

PERIODS_S = {
    "processLedgerOutbox": 3,
    "finalizeRetryWorker": 2,
    "recoverFinalizeStuck": 3,
    "metricsCollect": 2,
}
SHORT = {
    "JOB_OUTBOX_PERIOD_SEC": "3",
    "JOB_FINALIZE_PERIOD_SEC": "2",
    "JOB_STUCK_PERIOD_SEC": "3",
    "JOB_METRICS_PERIOD_SEC": "2",
    "REDIS_TIMEOUT_SEC": "3",
}
"""A Redis that is only slow, with its proxy in this process, is not away."""
TOLERANCE_S = 8
"""A slow machine's; without any patience of ours a run would wait as long as the outage lasts."""
QUICK_S = 1.0
PROCESSES = 6
HAMMERED_S = 2.0
TIME_OUT_S = 0.2
LOCK = f"lock:job:{JOB}"
RUNGS = {"lock:job:", "job:heartbeat:", "wake:job:", "django_q:recovery:q"}


class Site:
    """A cluster with a port for probes, whose way to Redis is a proxy."""

    def __init__(self, manage, **environment):
        self.port = servers.free_port()
        place = ["--metrics-port", str(self.port), "--metrics-host", "127.0.0.1"]
        self.started = manage.start("qcluster", "--json", *place, env=SHORT | environment)
        eventually(lambda: self.said("cluster_started") or self.started.process.poll() is not None)
        assert self.started.process.poll() is None, self.started.printed()

    def said(self, event):
        """Return how often ``event`` was logged so far."""
        return self.log()[event]

    def log(self):
        return count_events(self.started.printed()[1])

    def degraded(self):
        status, body = ask(self.port, "/metrics")
        assert status == 200, body
        values = [
            line.split()[1] for line in body.splitlines() if line[:18] == "job_lock_degraded "
        ]
        return [float(value) for value in values]

    def stop(self):
        """Stop in order; return how often each event was logged."""
        self.started.signal(signal.SIGTERM)
        finished = self.started.finish()
        assert finished.returncode == 0, finished.stderr
        assert finished.json()["restarts"] == 0
        return self.log()


@pytest.fixture
def proxy(redis_up, settings):
    """Return a proxy in front of the Redis server of the tests, which REDIS_URL goes through."""
    with Proxy(redis_up.port) as proxy:
        settings.REDIS_URL = proxy.url(redis_up.url)
        yield proxy


@contextmanager
def killed(server, _proxy):
    server.kill()
    yield
    server.start()


@contextmanager
def frozen(server, _proxy):
    server.pause()
    yield
    server.resume()


@contextmanager
def behind_a_black_hole(_server, proxy):
    proxy.swallow()
    yield
    proxy.mend()


@contextmanager
def full(server, _proxy):
    with configured(server, maxmemory_policy="noeviction", maxmemory="1"):
        yield


@contextmanager
def read_only(server, _proxy):
    """A replica of nobody: it answers, and takes no writes."""
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", "1")
        yield
        admin.replicaof("NO", "ONE")


@contextmanager
def configured(server, **options):
    with redis.Redis.from_url(server.url) as admin:
        for name, value in options.items():
            admin.config_set(name.replace("_", "-"), value)
        try:
            yield
        finally:
            admin.config_set("maxmemory", "0")


def starts(job, since):
    runs = JobRun.objects.filter(job_id=job, started_at__gte=since).order_by("started_at")
    return list(runs.values_list("started_at", flat=True))


def each_job_ran(times, since):
    return all(len(starts(job, since)) >= times for job in PERIODS_S)


def nobody_was_late(since):
    """Assert that between two runs of a job lie two periods at most."""
    for job, period_s in PERIODS_S.items():
        gaps = [later - earlier for earlier, later in pairwise(starts(job, since))]
        assert gaps
        assert max(gaps) <= timedelta(seconds=2 * period_s + TOLERANCE_S), job


def is_posted_quickly():
    """Tell whether what is published is posted by a run that started well within the period."""
    entry = posted(publish_one())
    run = eventually(
        JobRun.objects.filter(job_id=JOB, counts__posted__gte=1, finished_at__gte=entry.posted_at)
        .order_by("id")
        .first
    )
    return run.started_at - entry.created_at < timedelta(seconds=QUICK_S)


@contextmanager
def commands_seen(server):
    """Yield the set of the keys that commands to the server name, growing."""
    seen = set()

    def watch():
        with redis.Redis.from_url(server.url) as link, link.monitor() as monitor:
            for command in monitor.listen():
                seen.update(key for key in RUNGS if key in command["command"])
                if command["command"].startswith("ECHO"):
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield seen
    with redis.Redis.from_url(server.url) as link:
        while thread.is_alive():
            link.echo("over")
            thread.join(0.1)


def goes_by_redis(server):
    """Assert that lock, heartbeat, wake-up and queue are in Redis."""
    with commands_seen(server) as seen:
        eventually(lambda: posted(publish_one()) and seen == RUNGS)


@contextmanager
def few_tries(proxy):
    """Assert that each family of processes tries Redis once in a while alone."""
    begin, tries = time.monotonic(), proxy.accepted
    yield
    families, periods = 2, (time.monotonic() - begin) / link.RETRY_AFTER_S
    assert proxy.accepted - tries <= families * (periods + 1)


@pytest.mark.parametrize("outage", [killed, frozen, behind_a_black_hole, full, read_only])
def test_jobs_keep_their_periods_while_redis_is(outage, redis_up, proxy, manage):
    begin = db_now()
    site = Site(manage)
    eventually(lambda: each_job_ran(1, begin) and is_posted_quickly() and site.degraded() == [0])
    with outage(redis_up, proxy):
        since = db_now()
        during = publish_one()
        eventually(lambda: site.degraded() == [1])
        with few_tries(proxy):
            eventually(lambda: each_job_ran(1, since))
            posted(during)
        assert site.said("redis_back") == 0
    is_on_the_upper_rung_again(site, redis_up)
    nobody_was_late(begin)
    log = site.stop()
    assert (log["redis_down"], log["redis_back"], log["redis_refused"]) == (1, 1, 0)
    assert not JobRun.objects.exclude(status="ok").exists()


def is_on_the_upper_rung_again(site, server):
    eventually(lambda: site.said("redis_back"))
    goes_by_redis(server)
    eventually(is_posted_quickly)
    eventually(lambda: site.degraded() == [0])
    eventually(lambda: not OrmQ.objects.exists())


def test_cluster_started_without_redis_takes_it_up_once_it_is_there(redis_up, proxy, manage):
    redis_up.kill()
    begin = db_now()
    site = Site(manage)
    eventually(lambda: each_job_ran(1, begin) and site.degraded() == [1])
    posted(publish_one())
    redis_up.start()
    is_on_the_upper_rung_again(site, redis_up)
    eventually(lambda: each_job_ran(2, begin))
    nobody_was_late(begin)
    log = site.stop()
    assert (log["redis_down"], log["redis_back"]) == (1, 1)


def test_emptied_redis_is_no_outage_and_delays_nothing(redis_up, proxy, manage):
    begin = db_now()
    site = Site(manage)
    eventually(lambda: each_job_ran(1, begin) and is_posted_quickly())
    client().flushall()
    eventually(is_posted_quickly)
    goes_by_redis(redis_up)
    eventually(lambda: each_job_ran(2, begin))
    nobody_was_late(begin)
    log = site.stop()
    assert (log["redis_down"], log["redis_back"]) == (0, 0)


def test_redis_replaced_by_an_empty_one_lets_no_second_run_in(redis_up, proxy, manage):
    fault = {"RECOVERY_FAULTPOINTS": "outbox.before_commit=stop@1"}
    # No run but that of the entry: an idle one would stop there too.
    site = Site(manage, **fault, JOB_LOCK_TTL_SEC="60", JOB_OUTBOX_PERIOD_SEC="86400")
    entry = publish_one()
    run = eventually(held)
    redis_up.restart()
    assert client().dbsize() == 0 or not client().exists(LOCK)
    second = manage("run_job", JOB, "--json")
    assert (second.returncode, second.json()["reason"]) == (3, "locked")
    assert not client().exists(LOCK), "the refused one leaves no key"
    client().set(LOCK, "elsewhere:1:x", px=600_000)
    os.kill(run.pid, signal.SIGCONT)
    posted(entry)
    eventually(lambda: JobRun.objects.get(pk=run.pk).status == "ok")
    assert client().get(LOCK) == b"elsewhere:1:x", "whoever took the key meanwhile keeps it"
    assert Transaction.objects.count() == 1
    site.stop()


# What a hung server costs


@pytest.fixture
def hung(redis_up, proxy, settings):
    """Let Redis be behind a black hole, and this process know nothing of that."""
    settings.REDIS_TIMEOUT_SEC = TIME_OUT_S
    link._client.cache_clear()
    link._popping_client.cache_clear()
    proxy.swallow()
    yield proxy
    proxy.mend()
    link._client.cache_clear()
    link._popping_client.cache_clear()


def test_hung_redis_is_tried_once_by_a_run_and_not_by_the_next(hung, monkeypatch):
    monkeypatch.setattr(link, "RETRY_AFTER_S", 600.0)

    def work(run):
        run.progressed()
        wakeups.wake(NAME)
        return Batch(more=run.duration_s < 0.5)

    register(monkeypatch, work)
    assert [runner.run_job(NAME).status for _ in range(2)] == ["ok", "ok"]
    assert hung.accepted == 1


def test_of_many_processes_one_at_a_time_tries_a_hung_redis_and_one_says_so(hung, monkeypatch):
    monkeypatch.setattr(link, "RETRY_AFTER_S", 0.0)
    reading, writing = os.pipe()
    monkeypatch.setattr(link.logger, "warning", lambda *_a, **_k: os.write(writing, b"!"))
    begin = time.monotonic()

    def hammer():
        while time.monotonic() < begin + HAMMERED_S:
            with suppress(link.RedisDownError):
                link.call(lambda client: client.ping())

    children = [fork(hammer) for _ in range(PROCESSES)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * PROCESSES
    assert os.read(reading, 100) == b"!"
    assert hung.accepted <= PROCESSES + HAMMERED_S / TIME_OUT_S
    for end in (reading, writing):
        os.close(end)


# Clusters that do not see the same Redis


@pytest.fixture(params=["the other is refused", "each has its own"])
def split_sites(request, redis_up, proxy, manage, settings):
    """Start two clusters that share the database alone; return each with its producers' URL."""
    slow = {"RECOVERY_FAULTPOINTS": "outbox.before_commit=sleep:0.3"}
    with ExitStack() as stack:
        if request.param == "each has its own":
            other_url = stack.enter_context(servers.redis()).url
        else:
            other = stack.enter_context(Proxy(redis_up.port))
            other.refuse()
            other_url = other.url(redis_up.url)
        urls = [redis_up.url, other_url]
        yield [(Site(manage, REDIS_URL=url, **slow), url) for url in urls]


def test_clusters_that_see_different_redis_servers_keep_every_job_single(
    split_sites, manage, settings, tmp_path
):
    rows = plan_rows(40)
    half = plan_rows(20)
    for (_site, url), part in zip(split_sites, (half, rows[len(half) :]), strict=True):
        path = tmp_path / "part.csv"
        path.write_text(csv_text(part), encoding="utf-8")
        imported = manage(
            "import_splits", str(path), "--finalize", "--json", env={"REDIS_URL": url}
        )
        assert imported.json()["imported"] == 20
    for _site, url in split_sites:
        settings.REDIS_URL = url
        link.reset()
        eventually(is_posted_quickly)
    eventually(lambda: all_done(40))
    for site, _url in split_sites:
        assert site.stop()["redis_down"] <= 1
    each_was_worked_once(40)
    no_runs_overlap()
    assert not JobRun.objects.exclude(status="ok").exists()
    assert len({run.pid for run in JobRun.objects.all()}) > 1
