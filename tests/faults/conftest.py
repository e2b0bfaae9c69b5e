"""A Redis server and a cluster to break."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.clusters import Cluster
from tests.processes import Manage
from tests.recovery.conftest import no_redis, redis_server, redis_up, rung  # noqa: F401


@pytest.fixture
def cluster(manage: Manage) -> Callable[..., Cluster]:
    """Return what starts a cluster with more environment."""

    def start(**environment: Any) -> Cluster:
        return Cluster(manage.start("qcluster", "--json", env=environment))

    return start
