"""Walk real code on rows of its own in a transaction that is rolled back."""

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.conf import settings
from django.db import transaction

from recovery.models import AuditRecord


class UnprovenError(Exception):
    """What was to be shown was not seen."""

    def __init__(self, why: str, *, remedy: str = "") -> None:
        """Keep what was seen instead, and what to do."""
        super().__init__(why)
        self.remedy = remedy


@dataclass
class Rehearsal:
    """A walk of real code; what it writes is seen by nobody else and rolled back."""

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    excused: set[str] = field(default_factory=set)

    @property
    def key(self) -> str:
        """Return a key that no other row has."""
        return f"selfcheck:{self.token}"

    @property
    def actor(self) -> str:
        """Return the actor of its audit records, which no others have."""
        return f"system:selfcheck:{self.token}"

    def excuse(self, action: str) -> None:
        """Say that under these settings nothing is ever audited as ``action``."""
        self.excused.add(action)

    def audited(self) -> set[str]:
        """Return the actions that were audited on the way."""
        records = AuditRecord.objects.filter(actor=self.actor).order_by()
        return set(records.values_list("action", flat=True))


@contextmanager
def rehearsed() -> Iterator[Rehearsal]:
    """Yield a rehearsal; what the block writes, in the database and in the log, is for nobody.

    Nothing is sent on commit either, since there is none. Raises UnprovenError where a fault is
    planned on the way.
    """
    if settings.RECOVERY_FAULTPOINTS:
        raise UnprovenError(
            f"RECOVERY_FAULTPOINTS={settings.RECOVERY_FAULTPOINTS!r} is set:"
            " a walk of the code might break this process",
            remedy="Unset RECOVERY_FAULTPOINTS.",
        )
    with _quiet(), rolled_back():
        yield Rehearsal()


@contextmanager
def rolled_back() -> Iterator[None]:
    """Roll back what the block writes."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep alarms of what is rolled back out of the log."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
