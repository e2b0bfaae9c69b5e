"""What a batch posted or refused, told to the traces in which the entries were published."""

import time
from collections.abc import Iterator, Sequence

from django.db import DatabaseError, InterfaceError

from ledger.models import OutboxEntry
from ledger.posting import Result
from ledger.rows import KEYS_AT_ONCE
from recovery import tracing

NAME = "outbox_entry.post"
UNSAMPLED = "02468ace"
"""Ends of a traceparent whose trace nobody keeps; a span of it would cost as much as a posting."""
Traced = tuple[int, str, str, int]
"""Id, event key, traceparent and attempts of an entry, as they are after the batch."""


def begun_ns() -> int:
    """Return the time at which a batch begins, in ns since 1970."""
    return time.time_ns()


def tell(result: Result, *, since_ns: int) -> None:
    """Record an attempt of each entry that a batch posted or refused.

    One statement more a thousand entries, after the commit, and only where tracing is on. The first
    attempt continues the entry's trace, later ones are linked to it.
    """
    if not tracing.enabled():
        return
    posted = {entry.id for entry in result.posted}
    try:
        found = list(_of([*posted, *result.failures]))
    except (DatabaseError, InterfaceError):
        return  # spans are not worth a batch
    for pk, key, traceparent, attempts in found:
        if traceparent[-1] in UNSAMPLED:
            continue
        refusal = None if pk in posted else result.failures.get(pk)
        tried = attempts + (pk in posted)
        tracing.record(
            NAME,
            traceparent=traceparent,
            first=tried == 1,
            since_ns=since_ns,
            code=refusal.code.value if refusal else "",
            event_key=key,
            attempt=tried,
        )


def _of(ids: Sequence[int]) -> Iterator[Traced]:
    traced = OutboxEntry.objects.exclude(traceparent="").order_by()
    for start in range(0, len(ids), KEYS_AT_ONCE):
        some = ids[start : start + KEYS_AT_ONCE]
        columns = ("pk", "event_key", "traceparent", "attempts")
        yield from traced.filter(pk__in=some).values_list(*columns)
