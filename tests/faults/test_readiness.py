"""What probes of a real web server answer while database and Redis come and go."""

import pytest

from tests import servers
from tests.processes import Manage
from tests.waiting import eventually
from tests.web import Web

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def private_mariadb():
    """Return a MariaDB server to kill and to freeze."""
    with servers.mariadb() as server:
        yield server


def is_up(web):
    """Return what ``/readyz`` says, once the database answered it: probes are patient for 2 s."""
    found = web.ready()
    return found if found[1]["database"] == "ok" else None


@pytest.mark.mariadb
@pytest.mark.timeout(300)
def test_web_server_tells_of_a_database_that_is_empty_frozen_killed_and_back(private_mariadb):
    manage = Manage()
    environment = {"DATABASE_URL": private_mariadb.url, "DEBUG": "true"}
    try:
        web = Web(manage, **environment)
        status, facts = eventually(lambda: is_up(web))
        assert status == 503
        assert "run manage.py migrate" in facts["reasons"][0]
        assert manage("migrate", env=environment).returncode == 0
        eventually(lambda: web.ready()[0] == 200)

        private_mariadb.pause()
        status, facts = web.ready()
        assert (status, facts["database"]) == (503, "down")
        assert "metrics_database_up 0.0" in web.ask("/metrics")[1]
        private_mariadb.resume()
        eventually(lambda: web.ready()[0] == 200)

        private_mariadb.kill()
        status, facts = web.ready()
        assert (status, facts["database"]) == (503, "down")
        assert facts["reasons"][0].startswith("the database does not answer: ")
        assert web.ask("/healthz")[0] == 200
        private_mariadb.start()
        eventually(lambda: web.ready()[0] == 200)
        eventually(lambda: "metrics_database_up 1.0" in web.ask("/metrics")[1])
    finally:
        manage.clean_up()


@pytest.mark.redis
def test_web_server_reports_a_redis_that_is_frozen_and_killed_but_stays_ready(manage):
    with servers.redis() as cache:
        web = Web(manage, REDIS_URL=cache.url, DEBUG="true")
        eventually(lambda: web.ready()[1]["redis"] == "ok")
        for outage in (cache.pause, cache.kill):
            outage()
            status, facts = web.ready()
            assert (status, facts["redis"].partition(":")[0]) == (200, "down")
            cache.resume() if outage == cache.pause else cache.start()
            eventually(lambda: web.ready()[1]["redis"] == "ok")


def test_metrics_of_a_real_web_server_go_by_its_settings(manage, tmp_path):
    place = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "DEBUG": "true"}
    web = Web(manage, METRICS_TOKEN="s3cret", **place)
    assert web.ask("/metrics")[0] == 401
    off = Web(manage, METRICS_ENABLED="false", **place)
    assert off.ask("/metrics")[0] == 404
    assert off.ask("/readyz")[0] == 200
