"""Read one consistent snapshot in windows, many rows a statement."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django.db import DatabaseError, connection, models, reset_queries
from django.db.models import Count, Q

from ledger.models import EntryStatus, OutboxEntry, Posting, Transaction
from ledger.payloads import RefusedError, UnknownVersionError, read
from recovery.sqlite import ExactSum
from splits.reconcile.findings import Changes

WINDOW = 1_000
BEGIN = {
    # A plain BEGIN reads a snapshot and blocks no writer; the settings' IMMEDIATE would.
    "sqlite": ("BEGIN DEFERRED", "SELECT 1 FROM django_migrations LIMIT 1"),
    # The session reads committed; only this one transaction keeps its first view.
    # It locks nothing, and whoever reads its findings may take his time.
    "mysql": (
        "SET @patient = 1 /*M!100300 , idle_transaction_timeout = 0 */",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ),
}


@contextmanager
def snapshot() -> Iterator[None]:
    """Let every statement inside see the database as it is now."""
    if connection.in_atomic_block:
        yield
        return
    with connection.cursor() as cursor:
        for statement in BEGIN[connection.vendor]:
            cursor.execute(statement)
            cursor.fetchall()
    try:
        yield
    finally:
        with suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute("ROLLBACK")


def windows(model: type[models.Model], size: int = WINDOW) -> Iterator[Q]:
    """Yield conditions that cut the table of ``model`` into runs of up to ``size`` rows by id."""
    last = 0
    ids = model._default_manager.order_by("pk").values_list("pk", flat=True)
    while run := list(ids.filter(pk__gt=last)[:size]):
        yield Q(pk__gt=last, pk__lte=run[-1])
        last = run[-1]
        reset_queries()  # with DEBUG Django keeps every statement


@dataclass
class Moved:
    """What one transaction posted."""

    postings: int = 0
    changes: Changes = field(default_factory=dict)
    accounts: dict[int, Decimal] = field(default_factory=dict)

    def unbalanced(self) -> dict[str, Decimal]:
        """Return the sums by unit that are not zero."""
        sums: dict[str, Decimal] = {}
        for (_code, unit), quantity in self.changes.items():
            sums[unit] = sums.get(unit, Decimal(0)) + quantity
        return {unit: total for unit, total in sums.items() if total}


def moved_by(transactions: Q) -> dict[int, Moved]:
    """Return what the transactions that fit the condition posted, by id."""
    ids = Transaction.objects.filter(transactions).values("pk")
    rows = (
        Posting.objects.filter(transaction__in=ids)
        .order_by()
        .values_list("transaction_id", "account_id", "account__code", "account__unit")
        .annotate(total=ExactSum("quantity"), postings=Count("pk"))
    )
    moved: dict[int, Moved] = {}
    for transaction_id, account_id, code, unit, total, postings in rows:
        one = moved.setdefault(transaction_id, Moved())
        one.postings += postings
        one.changes[code, unit] = total
        one.accounts[account_id] = total
    return moved


def changes_of(payload: Any) -> Changes | None:
    """Return what a payload would post; None: it cannot be read."""
    try:
        return read(json.dumps(payload), connection.vendor).changes
    except (RefusedError, UnknownVersionError):
        return None


@dataclass
class Trace:
    """What outbox and ledger hold under one event key."""

    entry_id: int | None = None
    entry_status: str = ""
    transactions: list[int] = field(default_factory=list)
    changes: Changes | None = None
    """What was posted, or is to be posted; None: nothing that can be read."""

    def exists(self) -> bool:
        """Tell whether it was posted or still can be."""
        return bool(self.transactions) or self.entry_status not in ("", EntryStatus.DISCARDED)

    def state(self) -> str:
        """Return what there is, in words."""
        if self.entry_id is None:
            return "no entry and no transaction"
        return f"entry {self.entry_id} is {self.entry_status}"


def traces(keys: Collection[str]) -> dict[str, Trace]:
    """Return what outbox and ledger hold under each of ``keys``."""
    found = {key: Trace() for key in keys}
    entries = OutboxEntry.objects.filter(event_key__in=keys).order_by()
    for key, entry_id, status, payload in entries.values_list(
        "event_key", "pk", "status", "payload"
    ):
        found[key].entry_id, found[key].entry_status = entry_id, status
        found[key].changes = changes_of(payload)
    posted = dict(
        Transaction.objects.filter(event_key__in=keys).order_by().values_list("pk", "event_key")
    )
    moved = moved_by(Q(pk__in=posted)) if posted else {}
    for transaction_id, key in posted.items():
        found[key].transactions.append(transaction_id)
        found[key].changes = moved.get(transaction_id, Moved()).changes
    return found
