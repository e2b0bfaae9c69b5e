"""System checks of what only the ledger asks of the database."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Tags, Warning, register  # noqa: A004
from django.db import connections


@register(Tags.database)
def check_payload_size(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_kwargs: Any
) -> list[CheckMessage]:
    """Check that each server takes the largest payload that may be published."""
    return [
        finding
        for alias in databases or ()
        if connections[alias].vendor == "mysql"
        for finding in _check_packet(alias)
    ]


def _check_packet(alias: str) -> list[CheckMessage]:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (packet,) = cursor.fetchone()
    limit = settings.OUTBOX_MAX_PAYLOAD_BYTES
    if packet >= 2 * limit:  # escaped for SQL it may be twice as long
        return []
    return [
        Warning(
            f"The server of database {alias!r} takes packets of {packet} bytes, which is less"
            f" than twice OUTBOX_MAX_PAYLOAD_BYTES={limit}: it would refuse large entries.",
            hint=f"Set max_allowed_packet to at least {2 * limit} on the server,"
            f" or OUTBOX_MAX_PAYLOAD_BYTES to at most {packet // 2}.",
            id="recovery.W009",
        )
    ]
