"""Databases with large tables, filled by the server itself: nearly everything in them is done."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.contrib.auth.models import User
from django.db import connection

from benchmarks.machine import cores
from benchmarks.manyrows import Sql, analyze, store, text
from ledger.models import Account, OutboxEntry, Posting, Transaction
from ledger.outbox import payload_of
from recovery.models import AuditRecord, JobRun
from splits.models import Lot, SplitOrder

PATIENCE_S = 3_600
HISTORY_S = 40 * 86_400
"""So old is the oldest row: a quarter of the entries is past its retention."""
OPEN = 300
"""So many rows of any size wait for a worker; as many, spread over all, wait for an operator."""
IN_PROGRESS, STUCK = 100, 20
ACCOUNTS = 2_000
RUNS_SHARE = 5
KEY = "lot:B{n}:received"
USER = "bench"


def make(name: str, count: int) -> None:
    """Make database ``name`` with the tables of the current one, the large ones of ``count``."""
    here = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        for table in connection.introspection.table_names():
            cursor.execute(f"CREATE TABLE {name}.{table} LIKE {here}.{table}")
            cursor.execute(f"INSERT INTO {name}.{table} SELECT * FROM {here}.{table}")
    with another(name):
        fill(count)
        User.objects.create_superuser(USER)


def drop(name: str) -> None:
    """Drop a database that ``make`` made."""
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")


@contextmanager
def another(name: str) -> Iterator[None]:
    """Use database ``name`` on the same server meanwhile, patiently."""
    usual = {**connection.settings_dict}
    connection.close()
    connection.settings_dict["NAME"] = name
    connection.settings_dict["OPTIONS"] = {**usual["OPTIONS"], "read_timeout": PATIENCE_S}
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(usual)


def fill(count: int) -> None:
    """Fill the tables that grow, and let the server look at how their values are spread."""
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(partial(_apart, count), (_entries, _splits, _postings, _records)))
    grown = (Account, OutboxEntry, Transaction, Posting, Lot, SplitOrder, AuditRecord, JobRun)
    analyze(*grown)


def _spread(count: int, span_s: int = HISTORY_S) -> Sql:
    """Return times from long ago to now, in the order of the rows."""
    return _ago(f"({count} - n) * {span_s / count:.6f}")


def _ago(seconds: str) -> Sql:
    return Sql(f"UTC_TIMESTAMP(6) - INTERVAL ({seconds}) SECOND")


def _one_of(count: int, newest: str, some: str, rest: str) -> Sql:
    """Return one value for the newest rows, one for a few all over, one for all others."""
    every = count // OPEN
    return Sql(
        f"CASE WHEN n > {count - OPEN} THEN {newest} WHEN n % {every} = 0 THEN {some}"
        f" ELSE {rest} END"
    )


def _apart(count: int, fill_some: Callable[[int], None]) -> None:
    """Fill some tables over a connection of this thread: the server works one a processor."""
    with connection.cursor() as cursor:
        cursor.execute("SET unique_checks = 0, foreign_key_checks = 0")
    fill_some(count)
    connection.close()


def _entries(count: int) -> None:
    made = _spread(count)
    store(
        OutboxEntry,
        count,
        id=Sql("n"),
        event_key=text(KEY),
        event_type="lot-received",
        aggregate=text("lot:B{n DIV 5}"),
        payload=payload_of([]),
        content_hash="0" * 64,
        status=_one_of(count, "'pending'", "'dead'", "'posted'"),
        last_error_code=_one_of(
            count, "''", f"IF(n DIV {count // OPEN} % 3, 'account_closed', 'unbalanced')", "''"
        ),
        created_at=made,
        next_attempt_at=made,
        posted_at=_one_of(count, "NULL", "NULL", made),
    )


def _postings(count: int) -> None:
    store(Account, ACCOUNTS, code=text("stock:SKU-{n}"), unit="m2", balance=1)
    store(
        Transaction,
        count,
        id=Sql("n"),
        event_key=text(KEY),
        event_type="lot-received",
        content_hash="0" * 64,
        posted_at=_spread(count),
    )
    account = Sql(f"n % {ACCOUNTS} + 1")
    store(Posting, count, transaction_id=Sql("n"), line=1, account_id=account, quantity=1)


def _splits(count: int) -> None:
    made = _spread(count)
    store(
        Lot,
        count,
        id=Sql("n"),
        code=text("B{n}"),
        root_code=text("B{n DIV 5}"),
        sku=text("SKU-{n % 2000}"),
        quantity=10,
        unit="m2",
        status=_one_of(count, "'available'", "'cancelled'", "'consumed'"),
        created_at=made,
    )
    working = f"n > {count - IN_PROGRESS}"
    since = f"IF(n > {count - STUCK}, 100000, 0)"
    store(
        SplitOrder,
        count,
        id=Sql("n"),
        number=text("SO-{n}"),
        source_lot_id=Sql("n"),
        live_lot_id=Sql("n"),
        status=_one_of(count, "'ready'", "'failed'", "'finalized'"),
        finalize_in_progress=Sql(working),
        finalize_progress_at=Sql(f"IF({working}, {_ago(since)}, {made})"),
        next_finalize_at=_one_of(count, made, "NULL", "NULL"),
        finalized_at=_one_of(count, "NULL", "NULL", made),
        created_at=made,
    )


def _records(count: int) -> None:
    facts: dict[str, Any] = {"status": "ready", "attempts": 1}
    store(
        AuditRecord,
        count,
        id=Sql("n"),
        at=_spread(count),
        actor=_one_of(count, "'ann'", "'ben'", "'system:finalizeRetryWorker'"),
        action=Sql("IF(n % 9, 'split-order-finalize-failed', 'split-order-retried')"),
        target_type="split-order",
        target_id=text("SO-{n DIV 3}"),
        before=facts,
        after=facts,
    )
    runs = count // RUNS_SHARE
    store(
        JobRun,
        runs,
        run_id=Sql("UUID()"),
        job_id="processLedgerOutbox",
        fence=Sql("n"),
        host="host",
        pid=1,
        status=_one_of(runs, "'ok'", "'failed'", "'ok'"),
        started_at=_spread(runs),
        finished_at=_spread(runs),
    )
