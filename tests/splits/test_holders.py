"""Who holds an order's row: found for every kind of lock, named, kept, and never touched."""

import json
import secrets
import signal
import threading
from contextlib import closing, contextmanager, suppress

import MySQLdb
import pytest
from django.apps import apps
from django.db import connection, transaction

from recovery.clock import db_now
from recovery.models import AuditRecord
from recovery.runner import run_job
from splits import holders, stuck
from splits.finalize import Ending, finalize
from splits.models import SplitOrder, StuckSighting
from splits.stuck import Request, Result
from tests import admin
from tests.factories import AUTHOR, SplitOrderFactory, hang
from tests.recovery.engine import in_threads
from tests.splits.recovering import recover_all
from tests.splits.state import assert_finalized_once
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

REQUEST = Request(author=AUTHOR, threshold_s=300)
LOCK = "SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE"
UPDATE = "UPDATE splits_splitorder SET last_finalize_error = 'mine' WHERE id = %s"
SHARED = "SELECT id FROM splits_splitorder WHERE id = %s LOCK IN SHARE MODE"
CHILD = (
    "INSERT INTO splits_finalizestep (order_id, name, epoch, completed_at)"
    " VALUES (%s, 'validate', 7, NOW())"
)


@pytest.fixture
def foreign():
    """Return what opens a plain connection in a transaction, as somebody's own client would."""
    config, opened = connection.settings_dict, []

    def begin(*statements):
        link = MySQLdb.connect(
            host=config["HOST"],
            port=int(config["PORT"]),
            user=config["USER"],
            password=config["PASSWORD"],
            database=config["NAME"],
        )
        opened.append(link)
        link.cursor().execute("START TRANSACTION")
        for statement in statements:
            link.cursor().execute(*statement)
        return link

    yield begin
    for link in opened:
        with suppress(MySQLdb.Error):
            link.close()


def dump():
    """Return every row of every table of ours, less the sightings."""
    tables = {model._meta.db_table for model in apps.get_models()} - {"splits_stucksighting"}
    with connection.cursor() as cursor:
        found = {}
        for table in sorted(tables & set(connection.introspection.table_names())):
            cursor.execute(f"SELECT * FROM {table}")
            found[table] = sorted(map(repr, cursor.fetchall()))
    return found


def held(order):
    """Return the holder that recovery names, having changed nothing."""
    before = dump()
    (found,) = stuck.find(REQUEST, [order.number])
    (recovery,) = recover_all([found], REQUEST)
    assert recovery.result is Result.HELD
    assert dump() == before
    return recovery.holder


@pytest.mark.parametrize("statement", [UPDATE, SHARED, CHILD])
def test_idle_client_with_any_lock_on_the_row_is_named(foreign, statement):
    order = hang(SplitOrderFactory())
    client = foreign((statement, [order.pk]))
    holder = held(order)
    assert holder.connection_id == client.thread_id()
    assert holder.user == connection.settings_dict["USER"]
    assert holder.host.startswith(("127.0.0.1", "localhost"))
    assert 0 <= holder.age_s < 300
    assert (holder.command, holder.query, holder.hint) == ("Sleep", "", "")


@contextmanager
def busy(client, statement, *values):
    """Let a client work on a statement in a thread of its own; yield its connection's id."""
    connection_id = client.thread_id()

    def work():
        with suppress(MySQLdb.Error):
            client.cursor().execute(statement, values)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        eventually(lambda: runs(connection_id))
        yield connection_id
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"KILL {connection_id}")
        thread.join()


def runs(connection_id):
    with connection.cursor() as cursor:
        query = "SELECT INFO FROM information_schema.PROCESSLIST WHERE ID = %s"
        cursor.execute(query, [connection_id])
        return cursor.fetchone()[0]


def test_client_in_the_middle_of_a_statement_is_named_with_it(foreign):
    order = hang(SplitOrderFactory())
    statement = "SELECT SLEEP(300) /* the month's report */"
    with busy(foreign((UPDATE, [order.pk])), statement) as connection_id:
        holder = held(order)
    assert (holder.connection_id, holder.query) == (connection_id, statement)
    assert holder.command == "Query"


def test_who_waits_for_the_row_too_is_not_taken_for_its_holder(foreign):
    order = hang(SplitOrderFactory())
    elder = foreign(("SELECT COUNT(*) FROM splits_lot FOR UPDATE",))
    client = foreign((LOCK, [order.pk]))
    with busy(elder, LOCK, order.pk):
        assert held(order).connection_id == client.thread_id()


def test_stopped_finalizer_is_named_and_the_record_of_its_reset_says_who_it_was(manage):
    order = SplitOrderFactory()
    fault = "finalize.in_step.create_outputs=stop"
    env = {"RECOVERY_FAULTPOINTS": fault, "DATABASE_IDLE_TRANSACTION_SEC": "600"}
    process = manage.start("finalize", order.number, env=env)
    eventually(process.is_stopped)
    this = SplitOrder.objects.filter(pk=order.pk)
    first = manage("recover_stuck", "--json", "--threshold", "0")
    assert first.returncode == 1
    (report,) = first.json()["held"]
    holder = report["holder"]
    assert holder["command"] == "Sleep"
    assert this.get().finalize_in_progress
    assert not AuditRecord.objects.filter(target_type="split-order").exists()
    sighting = StuckSighting.objects.get()
    assert sighting.held_by == holder
    assert sighting.seen_at <= sighting.held_at <= db_now()
    process.signal(signal.SIGKILL)
    process.finish()

    def recovered():
        return manage("recover_stuck", "--json", "--threshold", "0").json()["recovered"]

    assert eventually(recovered) == [order.number]
    evidence = AuditRecord.objects.get(target_type="split-order").evidence
    assert evidence["held_before"] == {"at": sighting.held_at.isoformat(), **holder}
    assert finalize(order.pk, author=AUTHOR).ending is Ending.FINALIZED
    assert_finalized_once(order)


def test_holder_without_a_name_does_not_replace_one_that_has_one(foreign):
    order = hang(SplitOrderFactory())
    client = foreign((LOCK, [order.pk]))
    held(order)
    sightings = StuckSighting.objects.of(order.pk, 1)
    assert not sightings.note_holder(holders.Holder(hint="not shown").as_dict())
    assert sightings.get().held_by["connection_id"] == client.thread_id()
    other = holders.Holder(connection_id=1, user="else").as_dict()
    assert sightings.note_holder(other)
    assert sightings.get().held_by == other


def test_without_the_privilege_command_and_job_say_so_and_nothing_is_touched(foreign, manage):
    order = hang(SplitOrderFactory())
    foreign((LOCK, [order.pk]))
    with admin.login() as url:
        command = manage("recover_stuck", "--json", env={"DATABASE_URL": url})
        before = SplitOrder.objects.values().get()
        job = manage("run_job", "recoverFinalizeStuck", "--json", env={"DATABASE_URL": url})
    assert command.returncode == 1
    (report,) = command.json()["held"]
    assert report["number"] == order.number
    assert report["holder"]["connection_id"] is None
    assert "GRANT PROCESS" in report["holder"]["hint"]
    assert (job.returncode, job.json()["result"]) == (0, {"held": 1})
    logged = [json.loads(line) for line in job.stderr.splitlines()]
    (record,) = [line for line in logged if line["event"] == "split_order_held"]
    assert "GRANT PROCESS" in record["holder"]["hint"]
    assert record["job"] == "recoverFinalizeStuck"
    assert SplitOrder.objects.values().get() == before
    assert "GRANT PROCESS" in StuckSighting.objects.get().held_by["hint"]


def test_job_keeps_the_holder_and_puts_it_on_the_record_once_he_is_gone(foreign):
    order = hang(SplitOrderFactory())
    client = foreign((CHILD, [order.pk]))
    assert run_job("recoverFinalizeStuck").result == {"held": 1}
    assert not AuditRecord.objects.exists()
    client.rollback()
    assert run_job("recoverFinalizeStuck").result == {"recovered": 1}
    before = AuditRecord.objects.get().evidence["held_before"]
    assert before["connection_id"] == client.thread_id()


# MySQL 8's tables, by their names and columns, with rows made by hand

PERFORMANCE_SCHEMA = """
CREATE TABLE {0}.data_lock_waits (
  ENGINE VARCHAR(32) NOT NULL,
  REQUESTING_ENGINE_LOCK_ID VARCHAR(128) NOT NULL,
  REQUESTING_ENGINE_TRANSACTION_ID BIGINT UNSIGNED,
  REQUESTING_THREAD_ID BIGINT UNSIGNED,
  REQUESTING_EVENT_ID BIGINT UNSIGNED,
  REQUESTING_OBJECT_INSTANCE_BEGIN BIGINT UNSIGNED NOT NULL,
  BLOCKING_ENGINE_LOCK_ID VARCHAR(128) NOT NULL,
  BLOCKING_ENGINE_TRANSACTION_ID BIGINT UNSIGNED,
  BLOCKING_THREAD_ID BIGINT UNSIGNED,
  BLOCKING_EVENT_ID BIGINT UNSIGNED,
  BLOCKING_OBJECT_INSTANCE_BEGIN BIGINT UNSIGNED NOT NULL);
CREATE TABLE {0}.threads (
  THREAD_ID BIGINT UNSIGNED NOT NULL, NAME VARCHAR(128) NOT NULL, TYPE VARCHAR(10) NOT NULL,
  PROCESSLIST_ID BIGINT UNSIGNED, PROCESSLIST_USER VARCHAR(32), PROCESSLIST_HOST VARCHAR(255),
  PROCESSLIST_DB VARCHAR(64), PROCESSLIST_COMMAND VARCHAR(16), PROCESSLIST_TIME BIGINT,
  PROCESSLIST_STATE VARCHAR(64), PROCESSLIST_INFO LONGTEXT);
CREATE TABLE {0}.INNODB_TRX (
  trx_id BIGINT UNSIGNED NOT NULL, trx_state VARCHAR(13) NOT NULL, trx_started DATETIME NOT NULL,
  trx_requested_lock_id VARCHAR(126), trx_wait_started DATETIME,
  trx_mysql_thread_id BIGINT UNSIGNED NOT NULL, trx_query VARCHAR(1024));
"""
WAITING, IDLE, QUEUED = (41, 901, 11), (42, 902, 12), (43, 903, 13)
"""Thread, transaction, connection."""


@pytest.fixture
def mysql_8():
    """Return a cursor on a database with MySQL 8's tables, and what rewrites a query for it."""
    name = f"test_mysql8_{secrets.token_hex(4)}"
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        try:
            for statement in PERFORMANCE_SCHEMA.format(name).split(";")[:-1]:
                cursor.execute(statement)
            yield cursor, name
        finally:
            cursor.execute(f"DROP DATABASE {name}")


def fill(cursor, name):
    waits = [(WAITING, QUEUED), (WAITING, IDLE), (QUEUED, IDLE)]
    for (thread, trx, _), (other_thread, other_trx, _) in waits:
        cursor.execute(
            f"INSERT INTO {name}.data_lock_waits VALUES"
            " ('INNODB', 'a', %s, %s, 1, 1, 'b', %s, %s, 1, 1)",
            [trx, thread, other_trx, other_thread],
        )
    rows = [
        (WAITING, "Query", "SELECT 1 FOR UPDATE", 2, 1),
        (QUEUED, "Query", "UPDATE it", 500, 1),
        (IDLE, "Sleep", None, 90, None),
    ]
    for (thread, trx, connection_id), command, query, age_s, wait_s in rows:
        cursor.execute(
            f"INSERT INTO {name}.threads VALUES"
            " (%s, 'thread/sql/one_connection', 'FOREGROUND', %s, 'erp', 'db-client', 'x', %s,"
            " 3, '', %s)",
            [thread, connection_id, command, query],
        )
        cursor.execute(
            f"INSERT INTO {name}.INNODB_TRX VALUES"
            " (%s, 'RUNNING', CONVERT_TZ(NOW(), @@session.time_zone, 'SYSTEM')"
            " - INTERVAL %s SECOND, NULL, IF(%s, NOW(), NULL), %s, %s)",
            [trx, age_s, wait_s is not None, connection_id, query],
        )


def test_query_for_mysql_8_names_the_holder_from_its_tables(mysql_8):
    cursor, name = mysql_8
    fill(cursor, name)
    query = holders.MYSQL.replace("performance_schema.", f"{name}.")
    query = query.replace("information_schema.", f"{name}.")
    cursor.execute(query, [WAITING[2]])
    ((connection_id, user, host, age_s, command, text),) = cursor.fetchall()
    assert (connection_id, user, host, command, text) == (
        IDLE[2],
        "erp",
        "db-client",
        "Sleep",
        None,
    )
    assert 90 <= age_s < 400
    cursor.execute(query, [99])
    assert cursor.fetchone() is None


# Races


def test_recoverers_at_once_reset_each_order_once():
    orders = [hang(SplitOrderFactory()) for _ in range(20)]

    def work():
        return [stuck.recover(found, REQUEST).result for found in list(stuck.find(REQUEST))]

    results = [result for thread in in_threads(work, work, work) for result in thread]
    assert results.count(Result.RECOVERED) == 20
    assert set(results) <= {Result.RECOVERED, Result.GONE, Result.HELD}
    assert AuditRecord.objects.count() == 20
    for order in orders:
        order.refresh_from_db()
        assert (order.recovery_count, order.finalize_epoch) == (1, 2)


def test_holder_that_commits_while_it_is_recovered_either_wins_or_loses():
    """Either the progress of the slow finalizer stands and nothing is reset, or it is fenced."""
    wins = 0
    for _ in range(25):
        order = hang(SplitOrderFactory())
        (found,) = stuck.find(REQUEST, [order.number])
        this = SplitOrder.objects.filter(pk=order.pk)

        def progress(this=this):
            with transaction.atomic():
                return this.progress(1)

        progressed, recovery = in_threads(
            progress, lambda found=found: stuck.recover(found, REQUEST)
        )
        order.refresh_from_db()
        if progressed:
            wins += 1
            assert recovery.result in (Result.GONE, Result.HELD)
            assert (order.finalize_in_progress, order.finalize_epoch) == (True, 1)
        else:
            assert recovery.result is Result.RECOVERED
            assert (order.finalize_in_progress, order.finalize_epoch) == (False, 2)
        this.update(finalize_in_progress=False, finalize_progress_at=None)
    assert AuditRecord.objects.count() == 25 - wins
