"""A Redis server to break."""

from tests.recovery.conftest import no_redis, redis_server, redis_up, rung

__all__ = ["no_redis", "redis_server", "redis_up", "rung"]
