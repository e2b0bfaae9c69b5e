"""A Redis server and a cluster to break."""

from collections.abc import Callable
from typing import Any

import pytest

from splits.lifecycle import FINALIZE_JOB
from tests.faults.clusters import Cluster
from tests.faults.workload import Workload, run_now
from tests.processes import Manage
from tests.recovery.conftest import long_leases, no_redis, redis_server, redis_up, rung  # noqa: F401


@pytest.fixture
def cluster(manage: Manage) -> Callable[..., Cluster]:
    """Return what starts a cluster with more environment."""

    def start(**environment: Any) -> Cluster:
        return Cluster(manage.start("qcluster", "--json", env=environment))

    return start


@pytest.fixture
def finalized(transactional_db: None) -> Workload:
    """Return two finalized orders of whose ledger entries nothing is posted yet."""
    work = Workload(2)
    assert run_now(FINALIZE_JOB).result == {"finalized": 2}
    return work
