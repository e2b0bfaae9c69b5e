"""The posting loop's statements: plain values in and out, many rows each."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from django.db import connection

from ledger.models import (
    Account,
    EntryStatus,
    ErrorCode,
    OutboxEntry,
    Posting,
    Transaction,
)
from ledger.payloads import AccountKey
from recovery import audit
from recovery.fields import QUANTITY_PLACES
from recovery.models import stored_text

T = TypeVar("T")

_PLACES = Decimal(1).scaleb(-QUANTITY_PLACES)

ENTRY = OutboxEntry._meta.db_table
ACCOUNT = Account._meta.db_table
DIED = "the worker died while it worked this entry"
CLAIM_COLUMNS = (
    "id, event_key, event_type, aggregate, payload, content_hash, attempts, created_at,"
    f" last_error = '{DIED}'"
)
CHARGES_AT_ONCE = 50
KEYS_AT_ONCE = 1_000
"""So many keys or accounts stand in one statement: of the longest they take 900 KB."""
NOW = {"mysql": "UTC_TIMESTAMP(6)", "sqlite": "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')"}


class Claimed(NamedTuple):
    """A claimed entry; ``payload`` is JSON text as it is stored."""

    id: int
    event_key: str
    event_type: str
    aggregate: str
    payload: str
    content_hash: str
    attempts: int
    created_at: Any
    killed: bool
    """Its last attempt ended with the death of its worker."""


@dataclass
class AccountRow:
    """A locked account with its running balance."""

    id: int
    balance: Decimal
    closed: bool
    allow_negative: bool
    moved: bool = False


class Charge(NamedTuple):
    """A failed attempt to be stored."""

    entry: Claimed
    attempts: int
    next_attempt_at: datetime
    code: ErrorCode
    text: str
    dead: bool


def _skip_locked() -> str:
    skip_locked = connection.features.has_select_for_update_skip_locked
    return " FOR UPDATE SKIP LOCKED" if skip_locked else ""


def _for_update() -> str:
    return " FOR UPDATE" if connection.features.has_select_for_update else ""


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), KEYS_AT_ONCE):
        yield values[start : start + KEYS_AT_ONCE]


def _fetch(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def claim_sql() -> str:
    """Return the statement that claims due entries: an index range, sorted, locked row by row."""
    return (
        f"SELECT {CLAIM_COLUMNS} FROM {ENTRY}"  # noqa: S608 - constants
        f" WHERE status = 'pending' AND next_attempt_at <= {NOW[connection.vendor]}"
        f" ORDER BY status, next_attempt_at, id LIMIT %s{_skip_locked()}"
    )


def claim(limit: int) -> list[Claimed]:
    """Lock and return up to ``limit`` due entries that nobody else has locked."""
    return [Claimed(*row) for row in _fetch(claim_sql(), [limit])]


def claim_these(ids: Sequence[int]) -> list[Claimed]:
    """Lock and return those of ``ids`` that are pending and not locked by somebody else."""
    if not ids:
        return []
    sql = (
        f"SELECT {CLAIM_COLUMNS} FROM {ENTRY} {_by_id()}"  # noqa: S608 - constants
        f" WHERE id IN ({_marks(ids)}) AND status = 'pending' ORDER BY id{_skip_locked()}"
    )
    return [Claimed(*row) for row in _fetch(sql, list(ids))]


def _ids(sql: str, parameters: Sequence[Any]) -> list[int]:
    return [pk for (pk,) in _fetch(sql, parameters)]


def lock_pending(ids: Sequence[int]) -> list[int]:
    """Lock those of ``ids`` that are pending and not locked by somebody else; return them."""
    if not ids:
        return []
    sql = (
        f"SELECT id FROM {ENTRY} {_by_id()}"  # noqa: S608 - constants
        f" WHERE id IN ({_marks(ids)}) AND status = 'pending' ORDER BY id{_skip_locked()}"
    )
    return _ids(sql, ids)


def lock_followers(aggregate: str, *, after: int, limit: int) -> list[int]:
    """Lock the first pending entries behind ``after`` that are not locked by somebody else."""
    sql = (
        f"SELECT id FROM {ENTRY} {_by_aggregate()}"  # noqa: S608 - constants
        " WHERE aggregate = %s AND status = 'pending' AND id > %s"
        f" ORDER BY id LIMIT %s{_skip_locked()}"
    )
    return _ids(sql, [aggregate, after, limit])


def lock_parked(aggregates: Collection[str], *, limit: int) -> list[int]:
    """Lock the first parked entries of ``aggregates`` that are not locked by somebody else.

    Parked: pending and never tried, their time yet to come.
    """
    if not aggregates:
        return []
    sql = (
        f"SELECT id FROM {ENTRY} {_by_aggregate()}"  # noqa: S608 - constants
        f" WHERE aggregate IN ({_marks(aggregates)}) AND status = 'pending' AND attempts = 0"
        f" AND next_attempt_at > {NOW[connection.vendor]} ORDER BY id LIMIT %s{_skip_locked()}"
    )
    return _ids(sql, [*aggregates, limit])


def _by_id() -> str:
    """Return the hint that keeps a small table from being scanned: a scan locks what it passes."""
    return "FORCE INDEX (PRIMARY)" if connection.vendor == "mysql" else ""


def _marks(values: Collection[Any]) -> str:
    return ", ".join(["%s"] * len(values))


def _by_aggregate() -> str:
    """Return the hint for seeks in an aggregate: one that is hot would mislead the optimizer."""
    hint = {"mysql": "FORCE INDEX (outbox_aggregate)", "sqlite": "INDEXED BY outbox_aggregate"}
    return hint[connection.vendor]


def _seek(status: EntryStatus) -> str:
    """Return a subquery for the first id of ``status`` in the aggregate of ``e``."""
    return (
        f"(SELECT p.id FROM {ENTRY} p {_by_aggregate()}"  # noqa: S608 - constants
        f" WHERE p.aggregate = e.aggregate AND p.status = '{status.value}'"
        f" ORDER BY p.id LIMIT 1"
    )


def standings_sql(samples: Collection[int], count: int) -> str:
    """Return the statement of ``standings``: a few index seeks an aggregate."""
    first, dead = _seek(EntryStatus.PENDING), _seek(EntryStatus.DEAD)
    nth = f"{first} OFFSET {count - 1})" if count > 1 else "NULL"  # one is the first, sought once
    return (
        f"SELECT e.aggregate, {first}), {nth}, {dead})"  # noqa: S608 - constants
        f" FROM {ENTRY} e WHERE e.id IN ({_marks(samples)})"
    )


def standings(
    samples: Sequence[int], count: int
) -> list[tuple[str, int | None, int | None, int | None]]:
    """Return how the aggregates of these entries (one of each) stand.

    The aggregate, its first pending entry, the ``count``-th pending one, the first dead one.
    """
    found = _fetch(standings_sql(samples, count), samples)
    return [(name, head, nth if count > 1 else head, dead) for name, head, nth, dead in found]


def posted_hashes(event_keys: Sequence[str]) -> dict[str, str]:
    """Return the content hash of each of these keys that was posted before."""
    found: dict[str, str] = {}
    for keys in _chunks(event_keys):
        sql = (
            f"SELECT event_key, content_hash FROM {Transaction._meta.db_table}"  # noqa: S608
            f" WHERE event_key IN ({_marks(keys)})"
        )
        found.update(_fetch(sql, keys))
    return found


def make_accounts(keys: Collection[AccountKey]) -> None:
    """Make accounts that are missing, in the caller's short transaction.

    ``external:…`` accounts may go below zero, all others may not.
    """
    Account.objects.bulk_create(
        [
            Account(code=code, unit=unit, allow_negative=code.startswith("external:"))
            for code, unit in sorted(keys)
        ],
        batch_size=KEYS_AT_ONCE,
        ignore_conflicts=True,
    )


def lock_accounts(keys: Collection[AccountKey]) -> dict[AccountKey, AccountRow]:
    """Lock the accounts of ``keys`` in id order, so that two batches cannot deadlock."""
    found: dict[AccountKey, AccountRow] = {}
    for ids in _chunks(_account_ids(keys)):
        sql = (
            "SELECT id, code, unit, balance, closed_at IS NOT NULL, allow_negative"  # noqa: S608
            f" FROM {ACCOUNT} WHERE id IN ({_marks(ids)}) ORDER BY id{_for_update()}"
        )
        for pk, code, unit, balance, closed, negative in _fetch(sql, ids):
            row = AccountRow(pk, _decimal(balance), bool(closed), bool(negative))
            found[code, unit] = row
    return found


def _account_ids(keys: Collection[AccountKey]) -> list[int]:
    found: list[int] = []
    for codes in _chunks(sorted({code for code, _ in keys})):
        sql = f"SELECT id, code, unit FROM {ACCOUNT} WHERE code IN ({_marks(codes)})"  # noqa: S608
        found += (pk for pk, code, unit in _fetch(sql, codes) if (code, unit) in keys)
    return sorted(found)


def _decimal(value: Any) -> Decimal:
    # SQLite answers floats; they are exact to the 15 digits that are let in.
    return value if isinstance(value, Decimal) else Decimal(repr(value)).quantize(_PLACES)


def _insert(table: str, columns: Sequence[str], values: Iterable[Sequence[Any]]) -> None:
    found = list(values)
    if not found:
        return
    names = ", ".join(connection.ops.quote_name(name) for name in columns)
    sql = f"INSERT INTO {table} ({names}) VALUES ({_marks(columns)})"  # noqa: S608 - constants
    with connection.cursor() as cursor:
        cursor.executemany(sql, found)


def _stored(moment: datetime) -> Any:
    return connection.ops.adapt_datetimefield_value(moment)


def insert_transactions(entries: Iterable[Claimed], posted_at: datetime) -> None:
    """Insert one transaction an entry; it has the entry's id."""
    at = _stored(posted_at)
    _insert(
        Transaction._meta.db_table,
        ("id", "event_key", "event_type", "content_hash", "posted_at"),
        ((e.id, e.event_key, e.event_type, e.content_hash, at) for e in entries),
    )


def insert_postings(postings: Iterable[tuple[int, int, int, Decimal]]) -> None:
    """Insert postings given as (transaction, line, account, quantity)."""
    _insert(
        Posting._meta.db_table,
        ("transaction_id", "line", "account_id", "quantity"),
        ((entry, line, account, str(quantity)) for entry, line, account, quantity in postings),
    )


def store_balances(accounts: Sequence[AccountRow]) -> None:
    """Store the balances of locked accounts, hundreds in one statement."""
    for some in _chunks(accounts):
        _store_balances(some)


def _store_balances(accounts: Sequence[AccountRow]) -> None:
    cases = " ".join(["WHEN %s THEN %s"] * len(accounts))
    sql = (
        f"UPDATE {ACCOUNT} SET balance = CASE id {cases} END"  # noqa: S608 - constants
        f" WHERE id IN ({_marks(accounts)})"
    )
    values: list[Any] = []
    for account in accounts:
        values += (account.id, _number(account.balance))
    with connection.cursor() as cursor:
        cursor.execute(sql, values + [account.id for account in accounts])


def _number(value: Decimal) -> Any:
    # A CASE has no column affinity: SQLite would keep the text as text.
    return float(value) if connection.vendor == "sqlite" else value


def mark_posted(ids: Sequence[int], posted_at: datetime) -> None:
    """Mark entries as posted."""
    if not ids:
        return
    sql = (
        f"UPDATE {ENTRY} SET status = 'posted', posted_at = %s, last_error_code = '',"  # noqa: S608
        f" last_error = '' WHERE id IN ({_marks(ids)})"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [_stored(posted_at), *ids])


def store_charges(charges: Sequence[Charge], *, actor: str) -> None:
    """Store failed attempts, and an audit record for each entry that is dead now."""
    if not charges:
        return
    OutboxEntry.objects.bulk_update(
        [
            OutboxEntry(
                pk=charge.entry.id,
                status=EntryStatus.DEAD if charge.dead else EntryStatus.PENDING,
                attempts=charge.attempts,
                next_attempt_at=charge.next_attempt_at,
                last_error_code=charge.code,
                last_error=stored_text(charge.text),
            )
            for charge in charges
        ],
        ["status", "attempts", "next_attempt_at", "last_error_code", "last_error"],
        batch_size=CHARGES_AT_ONCE,
    )
    for charge in charges:
        if charge.dead:
            _record_death(charge, actor)


def _record_death(charge: Charge, actor: str) -> None:
    audit.record(
        actor=actor,
        action="outbox-entry-dead",
        target_type="outbox-entry",
        target_id=str(charge.entry.id),
        before={"status": EntryStatus.PENDING, "attempts": charge.entry.attempts},
        after={"status": EntryStatus.DEAD, "attempts": charge.attempts},
        evidence={
            "event_key": charge.entry.event_key,
            "code": charge.code,
            "error": stored_text(charge.text),
        },
    )
