"""A Redis server that tests may stop, freeze and flush; and patience with slow machines."""

from collections.abc import Iterator
from functools import cache

import pytest
from pytest_django import Settings

from recovery import link, probing, registry
from tests import servers

PATIENCE_S = 10.0


@pytest.fixture(autouse=True)
def _patience(settings: Settings) -> Iterator[None]:
    """Give servers up later than production does: a machine that is slow is no outage.

    A patch of its own: some tests undo all of theirs half-way.
    """
    settings.REDIS_TIMEOUT_SEC = PATIENCE_S
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "POP_SOCKET_TIMEOUT_S", 3 * PATIENCE_S)
        for name in ("_client", "_popping_client"):  # made with the time-outs of now
            patch.setattr(link, name, cache(getattr(link, name).__wrapped__))
        patch.setattr(probing, "PATIENCE_S", 60)
        yield


@pytest.fixture
def long_leases(settings: Settings) -> None:
    """Let no lease expire by itself within a test."""
    settings.JOB_LOCK_TTL_SEC = 60


@pytest.fixture
def long_periods(settings: Settings) -> None:
    """Let each job run every ten minutes only, so that none is late within a test."""
    for job in registry.all_jobs():
        setattr(settings, job.period_setting, 600)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    """Run a Redis server of this session's own."""
    with servers.redis() as server:
        yield server


@pytest.fixture
def redis_up(
    redis_server: servers.Redis, settings: Settings, long_leases: None
) -> Iterator[servers.Redis]:
    """Set REDIS_URL to an empty server; whatever the test does to it is mended."""
    if redis_server.process is None:
        redis_server.start()
    settings.REDIS_URL = redis_server.url
    link.connect(redis_server.url, socket_timeout=60).flushall()
    yield redis_server
    if redis_server.process is not None:
        redis_server.resume()
        probe = link.connect(redis_server.url, socket_timeout=60)
        # What was sent while it was frozen is worked in its first round, not after a flush.
        assert probe.ping()
        assert probe.ping()


@pytest.fixture
def no_redis(settings: Settings, long_leases: None) -> None:
    """Work without Redis."""
    settings.REDIS_URL = ""


@pytest.fixture(params=["redis", "row"])
def rung(request: pytest.FixtureRequest) -> str:
    """Run the test on both rungs: with a Redis server, and without."""
    request.getfixturevalue("redis_up" if request.param == "redis" else "no_redis")
    return str(request.param)
