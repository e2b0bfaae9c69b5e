"""The posting loop's statements: plain values in and out, many rows each."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import chain
from typing import Any, ClassVar, NamedTuple, TypeVar
from uuid import UUID

from django.db import connection

from ledger import dlq
from ledger.models import (
    Account,
    EntryStatus,
    ErrorCode,
    OutboxEntry,
    Posting,
    Transaction,
)
from ledger.payloads import AccountKey, Lines
from recovery import audit
from recovery.fields import QUANTITY_PLACES
from recovery.models import stored_text

T = TypeVar("T")

_PLACES = Decimal(1).scaleb(-QUANTITY_PLACES)

ENTRY = OutboxEntry._meta.db_table
ACCOUNT = Account._meta.db_table
TRANSACTION = Transaction._meta.db_table
POSTING = Posting._meta.db_table
ENTRY_DEAD = "outbox-entry-dead"
USED_UP = "its attempts are used up"
DIED = "the worker died while it worked this entry"
CLAIM_COLUMNS = (
    # The time as text: the driver takes longer to read a column of times than all others.
    f"id, event_key, aggregate, payload, attempts, CAST(created_at AS CHAR), last_error = '{DIED}'"
)
CHARGES_AT_ONCE = 50
KEYS_AT_ONCE = 999
"""So many keys stand in one statement: of the longest they take 900 KB.

MariaDB makes a join of an ``IN`` with 1,000 values, which scans, and locks, a table that is small.
"""
POSTINGS_AT_ONCE = 5_000
"""So many postings stand in one statement: at most 400 KB. (More are not faster.)"""
BALANCES_AT_ONCE = 100
"""So many balances stand in one statement: the server goes through all of them for each row."""
NOW = {"mysql": "UTC_TIMESTAMP(6)", "sqlite": "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')"}


class Claimed(NamedTuple):
    """A claimed entry; ``payload`` is JSON text as it is stored."""

    id: int
    event_key: str
    aggregate: str
    payload: str
    attempts: int
    created_at: str
    """In ISO 8601, UTC."""
    killed: bool
    """Its last attempt ended with the death of its worker."""


Stored = tuple[Decimal, int, int]
"""Of an account: its balance, whether it is closed, whether it may go below zero."""


@dataclass(slots=True)
class AccountRow:
    """An account with its running balance."""

    id: int
    stored: Stored
    balance: Decimal
    lowest: Decimal
    """The lowest balance that an entry left which took from it."""

    def change(self) -> Decimal:
        """Return by how much the balance was moved."""
        return self.balance - self.stored[0]


@dataclass(frozen=True)
class Charge:
    """A failed attempt to be stored."""

    COLUMNS: ClassVar = ("status", "attempts", "next_attempt_at", "last_error_code", "last_error")

    entry: Claimed
    attempts: int
    next_attempt_at: datetime
    code: ErrorCode
    text: str
    dead: bool

    def values(self) -> tuple[Any, ...]:
        """Return the values of ``COLUMNS`` as the driver takes them."""
        return (
            (EntryStatus.DEAD if self.dead else EntryStatus.PENDING).value,
            self.attempts,
            _stored(self.next_attempt_at),
            self.code.value,
            stored_text(self.text),
        )


def _skip_locked() -> str:
    skip_locked = connection.features.has_select_for_update_skip_locked
    return " FOR UPDATE SKIP LOCKED" if skip_locked else ""


def _for_update() -> str:
    return " FOR UPDATE" if connection.features.has_select_for_update else ""


def _chunks(values: Sequence[T], size: int = KEYS_AT_ONCE) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _numbers(values: Iterable[int]) -> str:
    """Return numbers as they stand in a statement: formatting parameters takes the driver longer
    than the server needs for the work."""
    return ",".join(map(str, values))


def _fetch(sql: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
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
    return list(map(Claimed._make, _fetch(claim_sql(), [limit])))


def claim_these(ids: Sequence[int]) -> list[Claimed]:
    """Lock and return those of ``ids`` that are pending and not locked by somebody else."""
    return list(map(Claimed._make, _locked_pending(CLAIM_COLUMNS, ids)))


def _locked_pending(columns: str, ids: Iterable[int]) -> Iterator[tuple[Any, ...]]:
    for some in _chunks(sorted(ids)):
        yield from _fetch(
            f"SELECT {columns} FROM {ENTRY} {_by_id()}"  # noqa: S608 - numbers
            f" WHERE id IN ({_numbers(some)}) AND status = 'pending' ORDER BY id{_skip_locked()}"
        )


def _ids(sql: str, parameters: Sequence[Any]) -> list[int]:
    return [pk for (pk,) in _fetch(sql, parameters)]


def lock_pending(ids: Sequence[int]) -> list[int]:
    """Lock those of ``ids`` that are pending and not locked by somebody else; return them."""
    return [pk for (pk,) in _locked_pending("id", ids)]


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


def standings_sql(samples: Iterable[int], count: int) -> str:
    """Return the statement of ``standings``: a few index seeks an aggregate."""
    first, dead = _seek(EntryStatus.PENDING), _seek(EntryStatus.DEAD)
    nth = f"{first} OFFSET {count - 1})" if count > 1 else "NULL"  # one is the first, sought once
    return (
        f"SELECT e.aggregate, {first}), {nth}, {dead})"  # noqa: S608 - constants
        f" FROM {ENTRY} e WHERE e.id IN ({_numbers(samples)})"
    )


def standings(
    samples: Sequence[int], count: int
) -> list[tuple[str, int | None, int | None, int | None]]:
    """Return how the aggregates of these entries (one of each) stand.

    The aggregate, its first pending entry, the ``count``-th pending one, the first dead one.
    """
    found = _fetch(standings_sql(samples, count))
    return [(name, head, nth if count > 1 else head, dead) for name, head, nth, dead in found]


def posted_before_sql(ids: Iterable[int]) -> str:
    """Return the statement of ``posted_before``: a look into the index of keys for each entry."""
    # The entries first, whatever the optimizer thinks of the tables' sizes.
    join = {"mysql": "STRAIGHT_JOIN", "sqlite": "CROSS JOIN"}[connection.vendor]
    return (
        f"SELECT e.id, t.content_hash = e.content_hash FROM {ENTRY} e"  # noqa: S608 - numbers
        f" {join} {TRANSACTION} t ON t.event_key = e.event_key WHERE e.id IN ({_numbers(ids)})"
    )


def posted_before(ids: Sequence[int]) -> dict[int, bool]:
    """Return which of these entries have a key that was posted before: with the same content?"""
    return {pk: bool(same) for pk, same in _fetch(posted_before_sql(ids))} if ids else {}


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


STORED = "balance, closed_at IS NOT NULL, allow_negative"


def read_accounts(keys: Collection[AccountKey]) -> dict[AccountKey, AccountRow]:
    """Return the accounts of ``keys`` there are, as a plain read sees them."""
    found: dict[AccountKey, AccountRow] = {}
    for codes in _chunks(sorted({code for code, _ in keys})):
        sql = f"SELECT {STORED}, id, code, unit FROM {ACCOUNT} WHERE code IN ({_marks(codes)})"  # noqa: S608
        for balance, closed, allow_negative, pk, code, unit in _exact(_fetch(sql, codes)):
            if (code, unit) in keys:
                stored = balance, closed, allow_negative
                found[code, unit] = AccountRow(pk, stored, balance, balance)
    return found


def lock_accounts(accounts: Iterable[AccountRow]) -> dict[int, Stored]:
    """Lock accounts in id order, so that two batches cannot deadlock; return what they hold."""
    found: dict[int, Stored] = {}
    for ids in _chunks(sorted(account.id for account in accounts)):
        sql = (
            f"SELECT {STORED}, id FROM {ACCOUNT} {_by_id()}"  # noqa: S608 - numbers
            f" WHERE id IN ({_numbers(ids)}) ORDER BY id{_for_update()}"
        )
        found.update((row[3], row[:3]) for row in _exact(_fetch(sql)))
    return found


def _exact(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return ``rows`` with the first column as decimals.

    SQLite answers floats; they are exact to the 15 digits that are let in.
    """
    if connection.vendor == "mysql":
        return rows
    return [(Decimal(repr(first)).quantize(_PLACES), *rest) for first, *rest in rows]


def _stored(moment: datetime) -> Any:
    return connection.ops.adapt_datetimefield_value(moment)


def _do(sql: str, parameters: Sequence[Any] | None = None) -> int:
    """Execute a statement; return how many rows it found."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return int(cursor.rowcount)


def insert_transactions(ids: Sequence[int], posted_at: datetime) -> None:
    """Insert one transaction an entry; it has the entry's id."""
    if ids:
        _do(
            f"INSERT INTO {TRANSACTION} (id, event_key, event_type, content_hash, posted_at)"  # noqa: S608
            f" SELECT id, event_key, event_type, content_hash, %s FROM {ENTRY} {_by_id()}"
            f" WHERE id IN ({_numbers(ids)})",
            [_stored(posted_at)],
        )


def insert_postings(
    movements: Iterable[tuple[int, Lines]], accounts: Mapping[AccountKey, AccountRow]
) -> None:
    """Insert the lines of movements, each given with its transaction."""
    ids = {key: account.id for key, account in accounts.items()}
    values = [
        f"({pk},{line},{ids[key]},{quantity})"
        for pk, lines in movements
        for line, (key, quantity) in enumerate(lines, start=1)
    ]
    for some in _chunks(values, POSTINGS_AT_ONCE):
        _do(
            f"INSERT INTO {POSTING} (transaction_id, line, account_id, quantity)"  # noqa: S608
            f" VALUES {','.join(some)}"
        )


def store_balances(accounts: Sequence[AccountRow]) -> None:
    """Store the balances of locked accounts."""
    for some in _chunks(accounts, BALANCES_AT_ONCE):
        cases = " ".join(f"WHEN {account.id} THEN {account.balance:f}" for account in some)
        ids = _numbers(account.id for account in some)
        _do(f"UPDATE {ACCOUNT} SET balance = CASE id {cases} END WHERE id IN ({ids})")  # noqa: S608


def change_balances(accounts: Sequence[AccountRow]) -> bool:
    """Change the balances of accounts that may go below zero by what they moved.

    They need not be locked. False: one of them was closed, or may not go below zero any more.
    """
    changed = 0
    for some in _chunks(sorted(accounts, key=lambda account: account.id), BALANCES_AT_ONCE):
        cases = " ".join(f"WHEN {it.id} THEN {it.change():f}" for it in some)
        ids = _numbers(account.id for account in some)
        changed += _do(
            f"UPDATE {ACCOUNT} SET balance = balance + CASE id {cases} END"  # noqa: S608
            f" WHERE id IN ({ids}) AND closed_at IS NULL AND allow_negative"
        )
    return changed == len(accounts)


def mark_posted(ids: Sequence[int], posted_at: datetime) -> None:
    """Mark entries as posted."""
    if ids:
        _do(
            f"UPDATE {ENTRY} SET status = 'posted', posted_at = %s, last_error_code = '',"  # noqa: S608
            f" last_error = '' WHERE id IN ({_numbers(ids)})",
            [_stored(posted_at)],
        )


def store_charges(charges: Sequence[Charge], *, actor: str, run_id: UUID | None = None) -> None:
    """Store failed attempts, and an audit record for each entry that is dead now."""
    for some in _chunks(charges, CHARGES_AT_ONCE):
        columns = [_by_case(name, some) for name in Charge.COLUMNS]
        values = chain.from_iterable(zip(*map(Charge.values, some), strict=True))
        ids = _numbers(charge.entry.id for charge in some)
        _do(f"UPDATE {ENTRY} SET {', '.join(columns)} WHERE id IN ({ids})", [*values])  # noqa: S608
    dead = [charge for charge in charges if charge.dead]
    if dead:
        dlq.file((it.entry.id, it.code.value, it.text) for it in dead)
    for charge in dead:
        _record_death(charge, actor, run_id)


def _by_case(name: str, charges: Iterable[Charge]) -> str:
    cases = " ".join(f"WHEN {charge.entry.id} THEN %s" for charge in charges)
    return f"{name} = CASE id {cases} END"


def _record_death(charge: Charge, actor: str, run_id: UUID | None) -> None:
    audit.record(
        actor=actor,
        action=ENTRY_DEAD,
        target_type="outbox-entry",
        target_id=str(charge.entry.id),
        reason=USED_UP,
        before={"status": EntryStatus.PENDING, "attempts": charge.entry.attempts},
        after={"status": EntryStatus.DEAD, "attempts": charge.attempts},
        evidence={
            "event_key": charge.entry.event_key,
            "code": charge.code,
            "error": stored_text(charge.text),
        },
        run_id=run_id,
    )
