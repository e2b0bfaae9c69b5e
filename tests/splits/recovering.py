"""Recover several stuck orders, as the job does."""

from collections.abc import Iterable, Iterator

from splits import stuck
from splits.stuck import Found, Recovery, Request, Result


def recover_all(found: Iterable[Found], request: Request) -> Iterator[Recovery]:
    """Yield what becomes of each order: first all that can be reset, then the held with holders."""
    held = []
    for order in found:
        recovery = stuck.recover(order, request)
        if recovery.result is Result.HELD:
            held.append(order)
        else:
            yield recovery
    for order in held:
        yield stuck.name_holder(order, request)
