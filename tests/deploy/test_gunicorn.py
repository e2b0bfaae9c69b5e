"""Gunicorn by the settings that are shipped: forked safely, counted truly, stopped in order."""

import signal
import subprocess
import sys
import threading

import pytest
from django.conf import settings
from django.db import connection

from tests.processes import environment, local_ports
from tests.recovery.sites import BEARER, Site, asked
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]


@pytest.fixture
def site(manage, tmp_path):
    return Site(manage, tmp_path, DEBUG="false", ALLOWED_HOSTS="localhost,127.0.0.1")


def connections_of(site):
    """Return who is connected to the server, by the local port of each process."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, host FROM information_schema.processlist")
        return {int(host.rpartition(":")[2]): pk for pk, host in cursor.fetchall() if ":" in host}


def test_code_is_loaded_once_and_no_connection_is_shared(site):
    """Each worker answers many requests at once; the server sees connections of each alone."""
    answers = []

    def ask():
        for _ in range(10):
            answers.append(asked(site.port, "/admin/login/", headers={"Host": "localhost"})[0])
            answers.append(asked(site.port, "/readyz")[0])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {200}
    ports = [local_ports(pid) for pid in (site.started.pid, *site.workers())]
    assert ports[0].isdisjoint(connections_of(site)), "the master has none"
    assert ports[1] & ports[2] == {site.port}


def test_size_that_cannot_be_used_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"],
        cwd=settings.BASE_DIR, env=environment() | {"WEB_THREADS": "many"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "setting WEB_THREADS='many' is not usable: expected a whole number" in done.stderr


def requests_in(scrape):
    name = "django_http_requests_before_middlewares_total"
    return scrape[name,]


def test_requests_of_a_killed_worker_stay_counted(site):
    for _ in range(20):
        site.ask("/admin/login/", headers={"Host": "localhost"})
    before = requests_in(site.scrape())
    assert before >= 20
    site.kill_worker()
    assert requests_in(site.scrape()) >= before


def test_request_under_way_ends_before_a_stop_does(site, second_connection):
    told = []

    def ask():
        headers = {"Host": "localhost", "Cookie": f"sessionid={'x' * 32}"}
        told.append(asked(site.port, "/admin/", headers=headers)[0])

    waiting = threading.Thread(target=ask)
    with second_connection.cursor() as cursor:
        cursor.execute("LOCK TABLES django_session WRITE")
        waiting.start()
        eventually(waits_for_the_table)
        site.started.signal(signal.SIGTERM)
        eventually(lambda: "Handling signal: term" in site.started.printed()[1])
        assert told == [], "it waits"
        cursor.execute("UNLOCK TABLES")
    waiting.join()
    assert site.started.finish().returncode == 0
    assert told == [302], "it was answered"


def waits_for_the_table():
    waiting = (
        "SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for %%'"
    )
    with connection.cursor() as cursor:
        cursor.execute(waiting, [])
        return cursor.fetchone()[0] > 0


def test_workers_are_replaced_on_a_hang_up(site):
    before = site.workers()
    site.started.signal(signal.SIGHUP)
    eventually(lambda: len(site.workers()) == 2 and not set(before) & set(site.workers()))
    assert site.ask("/metrics", headers=BEARER)[0] == 200
