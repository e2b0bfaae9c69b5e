"""An installation under the eyes of a Prometheus, and a Redis server to stop."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import Manage
from tests.prometheus.watched import Watched
from tests.recovery.conftest import redis_server  # noqa: F401


@pytest.fixture
def watched(manage: Manage, tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Return what makes a watched installation on the test's database."""
    with ExitStack() as stack:
        yield lambda **environment: Watched(manage, tmp_path, stack, **environment)
