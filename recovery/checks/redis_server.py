"""The Redis server: whether it answers, keeps what it is given and takes writes.

For ``manage.py check --database default`` and ``migrate``. Warnings only: without Redis the jobs
go on by the database.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import redis
from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Tags, Warning, register  # noqa: A004

from recovery import link

SINCE = (6, 0)
KEEPS_ALL = "noeviction"


@register(Tags.database)
def check_redis(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_kwargs: Any
) -> list[CheckMessage]:
    """Check the server at REDIS_URL, where there is one and databases are asked for."""
    if not databases or not link.configured():
        return []
    patience_s = settings.REDIS_TIMEOUT_SEC
    try:
        with link.connect(settings.REDIS_URL, socket_timeout=patience_s) as client:
            client.ping()
            facts = _info(client)
    except redis.RedisError as error:
        return [_unusable(error)]
    return [*_version(facts), *_eviction(facts), *_role(facts)]


def _info(client: redis.Redis) -> dict[str, Any]:
    """Return what the server says of itself; nothing where this user may not ask."""
    try:
        return dict(client.info())
    except redis.exceptions.NoPermissionError:
        return {}


def _unusable(error: redis.RedisError) -> CheckMessage:
    text = str(error).rstrip(".")
    if "unknown command" in text and "HELLO" in text:
        return _too_old("older than 6")
    return Warning(
        f"Redis cannot be used: {text}. Jobs run all the same, degraded: locks, wake-ups and"
        " queue go by the database.",
        hint="Is the server up, and are host, port and password in REDIS_URL right?",
        id="recovery.W010",
    )


def _version(facts: dict[str, Any]) -> Iterator[CheckMessage]:
    text = str(facts.get("redis_version", ""))
    parts = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if parts and parts < SINCE:
        yield _too_old(text)


def _too_old(version: str) -> CheckMessage:
    needed = ".".join(map(str, SINCE))
    return Warning(
        f"The Redis server is {version}: this project's client and commands need {needed}.",
        hint=f"Upgrade Redis to {needed} or newer; until then jobs run degraded.",
        id="recovery.W012",
    )


def _eviction(facts: dict[str, Any]) -> Iterator[CheckMessage]:
    policy = facts.get("maxmemory_policy", KEEPS_ALL)
    if policy != KEEPS_ALL:
        yield Warning(
            f"Redis throws keys away when its memory is full (maxmemory-policy {policy}): locks,"
            " heartbeats and queued wake-ups among them.",
            hint=f"CONFIG SET maxmemory-policy {KEEPS_ALL}, or a Redis of its own for this site.",
            id="recovery.W011",
        )


def _role(facts: dict[str, Any]) -> Iterator[CheckMessage]:
    if facts.get("role") == "slave":
        yield Warning(
            "The Redis server at REDIS_URL is a replica, which takes no writes: jobs run degraded.",
            hint="Point REDIS_URL at the primary, or promote this one: REPLICAOF NO ONE.",
            id="recovery.W013",
        )
