"""Outbox entries for tests, and the whole ledger asserted at once."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.db import connection, transaction
from django.db.models import Count

from ledger.models import Account, EntryStatus, OutboxEntry, Posting, Transaction
from ledger.outbox import Line, content_hash, payload_of, publish
from ledger.posting import Policy, Result, post_due
from recovery.backoff import delay_sec
from recovery.clock import db_now
from recovery.sqlite import ExactSum

WORLD = "external:receipts"
DEADLINE_S = 120


def policy(**changes: Any) -> Policy:
    """Return the limits of a drain that holds no lease."""
    limits: dict[str, Any] = {
        "max_attempts": 3,
        "delay_sec": delay_sec,
        "cap_s": 1_800,
        "unknown_version_delay_s": 60,
        "actor": "system:test",
    }
    return Policy(**limits | changes)


def lines(*moves: tuple[str, str], unit: str = "m2") -> list[Line]:
    """Return lines of (account, quantity)."""
    return [Line(account, Decimal(quantity), unit) for account, quantity in moves]


def into(sku: str, quantity: str) -> list[Line]:
    """Return lines that receive ``quantity`` of ``sku``; negative: that send it away."""
    return lines((f"stock:{sku}", quantity), (WORLD, str(-Decimal(quantity))))


def put(key: str, what: list[Line], *, aggregate: str | None = None, **extra: Any) -> OutboxEntry:
    """Publish in a transaction of its own; the aggregate is by default the entry's alone."""
    with transaction.atomic():
        return publish(
            event_key=key,
            event_type="test",
            aggregate=aggregate or f"lot:{key}",
            lines=what,
            **extra,
        )


def junk(key: str, payload: Any, *, aggregate: str | None = None) -> OutboxEntry:
    """Store an entry with any payload, as by another program."""
    return store([(key, aggregate or f"lot:{key}", payload)])[0]


def store(entries: Iterable[tuple[str, str, Any]]) -> list[OutboxEntry]:
    """Store entries given as (key, aggregate, payload) in bulk; payloads may be lines."""
    rows = []
    for key, aggregate, content in entries:
        is_lines = isinstance(content, list) and content and isinstance(content[0], Line)
        payload = payload_of(content) if is_lines else content
        rows.append(
            OutboxEntry(
                event_key=key,
                event_type="test",
                aggregate=aggregate,
                payload=payload,
                content_hash=content_hash("test", aggregate, payload),
            )
        )
    OutboxEntry.objects.bulk_create(rows, batch_size=1_000)
    return list(
        OutboxEntry.objects.filter(event_key__in=[row.event_key for row in rows]).order_by("id")
        if len(rows) <= 500
        else []
    )


def drain(limit: int = 500, *, rounds: int = 100, **changes: Any) -> Result:
    """Post until nothing more happens; fail if that takes more than ``rounds`` batches."""
    total = Result()
    for _ in range(rounds):
        result = post_due(policy(**changes), limit=limit)
        total.add(result)
        if not result.progressed():
            return total
    raise AssertionError(f"still at work after {rounds} batches: {total.counts()}")


def make_due() -> None:
    """Let every pending entry be due, in the order they would have been."""
    moment = db_now() - timedelta(seconds=1)
    later = OutboxEntry.objects.pending().filter(next_attempt_at__gt=moment)
    later.update(next_attempt_at=moment)


def fresh(entry: OutboxEntry) -> OutboxEntry:
    """Return the entry as it stands now."""
    return OutboxEntry.objects.get(pk=entry.pk)


def state(entry: OutboxEntry) -> tuple[str, int, str]:
    """Return status, attempts and error code as they stand now."""
    columns = ("status", "attempts", "last_error_code")
    return OutboxEntry.objects.values_list(*columns).get(pk=entry.pk)


def balance(account: str, unit: str = "m2") -> Decimal:
    """Return the balance of an account; nothing where there is none."""
    found = Account.objects.filter(code=account, unit=unit).first()
    return found.balance if found else Decimal(0)


def assert_books_balance() -> None:
    """Assert what must hold of the ledger at any time."""
    sums = dict(Posting.objects.order_by().values_list("account").annotate(n=ExactSum("quantity")))
    for account in Account.objects.all():
        assert account.balance == sums.get(account.pk, 0), account
        assert account.allow_negative or account.balance >= 0, account
    per_unit = Posting.objects.order_by().values_list("transaction", "account__unit")
    assert not [row for row in per_unit.annotate(n=ExactSum("quantity")) if row[2]]
    posted = OutboxEntry.objects.filter(status=EntryStatus.POSTED)
    assert set(posted.values_list("pk", flat=True)) == set(
        Transaction.objects.values_list("pk", flat=True)
    )
    assert not Transaction.objects.annotate(n=Count("postings")).filter(n__lt=2).exists()


@contextmanager
def refusing(table: str, condition: str) -> Iterator[None]:
    """Let the database refuse INSERTs into ``table`` where ``condition`` holds of NEW."""
    name = f"refuse_{table}"
    if connection.vendor == "sqlite":
        body = f"WHEN {condition} BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    else:
        signal = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'"
        body = f"FOR EACH ROW BEGIN IF {condition} THEN {signal}; END IF; END"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TRIGGER {name} BEFORE INSERT ON {table} {body}")
    try:
        yield
    finally:
        with connection.cursor() as cursor:  # the connection may be another one by now
            cursor.execute(f"DROP TRIGGER {name}")


def let_go() -> None:
    """Wait until the server has noticed the death of a process that had entries locked."""
    with transaction.atomic():
        list(OutboxEntry.objects.select_for_update().values_list("pk"))


def somebody_waits() -> bool:
    """Tell whether a connection waits for a row lock (MariaDB; its lock tables are too stale)."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")
        return int(cursor.fetchone()[1]) > 0


class Background:
    """An action in a thread with a database connection of its own."""

    def __init__(self, action: Callable[[], Any]) -> None:
        """Start it."""
        self._action = action
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if connection.vendor == "mysql":
                with connection.cursor() as cursor:  # a slow machine's tests hold locks for long
                    cursor.execute("SET innodb_lock_wait_timeout = 100")
            self._outcome = self._action()
        except BaseException as error:  # noqa: BLE001 - raised where it is looked at
            self._error = error
        finally:
            connection.close()

    def result(self) -> Any:
        """Wait for the end; return what the action returned or raise what it raised."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "it hangs"
        if self._error:
            raise self._error
        return self._outcome
