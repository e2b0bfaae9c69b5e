"""What every test gets: a clean Redis, no fault points, a database of its own."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import hypothesis
import pytest
import redis
from django.conf import settings
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import translation

from recovery import faultpoints, leftovers, link, stopping
from tests import flushing
from tests.processes import Manage
from tests.waiting import eventually as wait_until

# How fast examples are drawn and tried tells of the machine.
patient = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("default", patient)
hypothesis.settings.register_profile("ci", patient, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure() -> None:
    """Refuse an environment in which tests would break or destroy something."""
    if os.environ.get("RECOVERY_FAULTPOINTS"):
        pytest.exit("RECOVERY_FAULTPOINTS is set: every test would meet it", 2)
    if settings.REDIS_URL and redis.Redis.from_url(settings.REDIS_URL).dbsize():
        pytest.exit("the Redis database of REDIS_URL holds keys, which tests would flush", 2)
    settings.AUDIT_TRIGGERS = False  # each test empties all tables
    flushing.keep_what_stays()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of databases and servers that are not configured."""
    for item in items:
        for marker, reason in _missing().items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> dict[str, str]:
    missing = {}
    if connection.vendor != "mysql":
        missing["mariadb"] = "needs MariaDB: run it through `python -m tests.servers --`"
    if connection.vendor != "sqlite":
        missing["sqlite"] = "is about SQLite alone"
        missing["once"] = "has no database in it, and runs beside the tests on SQLite"
    if not settings.REDIS_URL:
        missing["redis"] = "needs Redis: run it through `python -m tests.servers --`"
    return missing


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give each test session a SQLite file of its own, so that two can run at once.

    And let a slow MariaDB have its time for statements about many rows.
    """
    if connection.vendor == "sqlite":
        path = tmp_path_factory.mktemp("database") / "test.sqlite3"
        connection.settings_dict["TEST"]["NAME"] = str(path)
    else:
        connection.settings_dict["OPTIONS"] |= {"read_timeout": 300, "write_timeout": 300}


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """Forget what an earlier test left in this process and in Redis."""
    _forget()
    yield
    leaked = settings.RECOVERY_FAULTPOINTS or os.environ.get("RECOVERY_FAULTPOINTS")
    _forget()
    assert not leaked, f"the fault points {leaked!r} would hit later tests"


def _forget() -> None:
    if settings.REDIS_URL:
        with redis.Redis.from_url(settings.REDIS_URL) as client:
            client.flushdb()
    link.reset()
    translation.deactivate()  # a request leaves its language behind
    stopping.withdraw()
    faultpoints.forget()
    leftovers.forget()


@pytest.fixture
def redis_client() -> Iterator[redis.Redis]:
    """Return a client of the test's Redis (mark the test with ``redis``)."""
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        yield client


@pytest.fixture
def second_connection(transactional_db: None) -> Iterator[BaseDatabaseWrapper]:
    """Return another connection to the test's database, independent of Django's own."""
    with closing(connections["default"].copy()) as other:
        yield other


@pytest.fixture
def manage(transactional_db: None) -> Iterator[Manage]:
    """Return what runs ``manage.py`` on the test's database; see tests/processes.py."""
    runner = Manage()
    yield runner
    runner.clean_up()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Return ``tests.waiting.eventually``."""
    return wait_until
