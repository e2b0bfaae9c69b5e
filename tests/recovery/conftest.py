"""A Redis server that tests may stop, freeze and flush."""

from collections.abc import Iterator

import pytest
from pytest_django import Settings

from recovery import link
from tests import servers


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    """Run a Redis server of this session's own."""
    with servers.redis() as server:
        yield server


@pytest.fixture
def redis_up(redis_server: servers.Redis, settings: Settings) -> Iterator[servers.Redis]:
    """Set REDIS_URL to an empty server; whatever the test does to it is mended."""
    if redis_server.process is None:
        redis_server.start()
    settings.REDIS_URL = redis_server.url
    link.connect(redis_server.url, socket_timeout=5).flushall()
    yield redis_server
    if redis_server.process is not None:
        redis_server.resume()
        probe = link.connect(redis_server.url, socket_timeout=5)
        # What was sent while it was frozen is worked in its first round, not after a flush.
        assert probe.ping()
        assert probe.ping()


@pytest.fixture
def no_redis(settings: Settings) -> None:
    """Work without Redis."""
    settings.REDIS_URL = ""


@pytest.fixture(params=["redis", "row"])
def rung(request: pytest.FixtureRequest) -> str:
    """Run the test on both rungs: with a Redis server, and without."""
    request.getfixturevalue("redis_up" if request.param == "redis" else "no_redis")
    return str(request.param)
