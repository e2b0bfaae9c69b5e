"""A Redis server to stop."""

from tests.recovery.conftest import redis_server  # noqa: F401
