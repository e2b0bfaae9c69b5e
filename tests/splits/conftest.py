"""A Redis server to break, and time enough for a slow machine."""

from tests.patience import unhurried
from tests.recovery.conftest import long_leases, no_redis, redis_server, redis_up, rung

__all__ = ["long_leases", "no_redis", "redis_server", "redis_up", "rung", "unhurried"]
