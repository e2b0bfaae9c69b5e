"""Who is to blame for a database's error: judged by real ones."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connection,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError
from hypothesis import given
from hypothesis import strategies as st

from recovery import errors
from recovery.errors import code_of, is_infrastructure, is_passing, is_row_locked, with_retries
from recovery.models import Job
from tests.admin import server_set
from tests.waiting import eventually

UPDATE = "UPDATE recovery_job SET fence = fence + 1 WHERE name = %s"
WAIT_S = 100
"""How long a statement waits for what a slow machine does meanwhile."""
DATABASE_ERRORS = [DatabaseError, DataError, IntegrityError, OperationalError, ProgrammingError]


@pytest.fixture
def rows(transactional_db: None) -> None:
    Job.objects.bulk_create([Job(name="a"), Job(name="b")])


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(errors, "PAUSE_S", 0)


@pytest.fixture
def spoilt() -> Iterator[None]:
    """Let a test spoil its connection."""
    yield
    connection.close()


def execute(sql: str, *values: Any, on: BaseDatabaseWrapper | None = None) -> list[tuple]:
    with (on or connection).cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall()) if cursor.description else []


@contextmanager
def transaction_on(*connections: BaseDatabaseWrapper) -> Iterator[None]:
    for each in connections:
        each.set_autocommit(False)
    try:
        yield
    finally:
        for each in connections:
            each.connection.rollback()
            each.connection.autocommit(True)
            each.autocommit = True


def refusal(action: Callable[[], object]) -> DatabaseError:
    with pytest.raises(DatabaseError) as caught:
        action()
    return caught.value


class Elsewhere(threading.Thread):
    """A statement on another connection, which may have to wait."""

    def __init__(self, sql: str, *values: Any, on: BaseDatabaseWrapper) -> None:
        super().__init__(daemon=True)
        self.work = sql, values, on
        self.error: DatabaseError | None = None
        self.connection_id = execute("SELECT CONNECTION_ID()", on=on)[0][0]
        on.inc_thread_sharing()
        self.start()

    def run(self) -> None:
        sql, values, on = self.work
        try:
            execute(sql, *values, on=on)
        except DatabaseError as error:
            self.error = error

    def waits(self) -> bool:
        """Tell whether the statement has been running for a moment."""
        return bool(
            execute(
                "SELECT 1 FROM information_schema.processlist WHERE id = %s"
                " AND command = 'Query' AND time_ms > 50",
                self.connection_id,
            )
        )


@pytest.mark.mariadb
def test_deadlock_is_infrastructure(rows, spoilt, second_connection):
    for each in (connection, second_connection):
        execute(f"SET innodb_lock_wait_timeout = {WAIT_S}", on=each)
    with transaction_on(connection, second_connection):
        execute(UPDATE, "a")
        execute(UPDATE, "b", on=second_connection)
        other = Elsewhere(UPDATE, "a", on=second_connection)
        ours = None
        try:
            execute(UPDATE, "b")
        except OperationalError as error:
            ours = error
            connection.connection.rollback()
        other.join()
    (victim,) = [error for error in (ours, other.error) if error]
    assert code_of(victim) == 1213
    assert is_infrastructure(victim)


@pytest.mark.mariadb
def test_lock_wait_timeout_is_infrastructure(rows, second_connection):
    execute("SET innodb_lock_wait_timeout = 1", on=second_connection)
    with transaction_on(connection):
        execute(UPDATE, "a")
        error = refusal(lambda: execute(UPDATE, "a", on=second_connection))
    assert code_of(error) == 1205
    assert is_infrastructure(error)
    assert is_row_locked(error)


@pytest.mark.mariadb
def test_lock_of_a_client_that_falls_silent_in_a_transaction_goes_by_itself(
    rows, second_connection
):
    if not connection.mysql_is_mariadb:
        pytest.skip("MySQL has no such limit")
    assert execute("SELECT @@idle_transaction_timeout") == [(60,)]
    execute("SET idle_transaction_timeout = 1", on=second_connection)
    second_connection.set_autocommit(False)
    execute(UPDATE, "a", on=second_connection)
    execute(UPDATE, "a")
    error = refusal(lambda: execute(UPDATE, "b", on=second_connection))
    assert code_of(error) in (2006, 2013)  # as far as the client comes before it notices
    assert is_passing(error)


@pytest.mark.mariadb
def test_refused_nowait_is_a_locked_row(rows, second_connection):
    with transaction_on(connection):
        execute(UPDATE, "a")
        error = refusal(
            lambda: execute(
                "SELECT * FROM recovery_job WHERE name = 'a' FOR UPDATE NOWAIT",
                on=second_connection,
            )
        )
    assert is_row_locked(error)
    assert is_infrastructure(error)


@pytest.mark.mariadb
def test_killed_connection_is_infrastructure_and_a_retry_gets_another(rows, second_connection):
    before = execute("SELECT CONNECTION_ID()")
    execute("KILL %s", before[0][0], on=second_connection)
    seen = []

    def action() -> list[tuple]:
        try:
            return execute("SELECT CONNECTION_ID()")
        except DatabaseError as error:
            seen.append(error)
            raise

    assert with_retries(action) != before
    assert [is_infrastructure(error) for error in seen] == [True]
    assert code_of(seen[0]) in (2006, 2013, 1927)


@pytest.mark.mariadb
def test_interrupted_statement_is_infrastructure(rows, second_connection):
    execute(f"SET innodb_lock_wait_timeout = {WAIT_S}", on=second_connection)
    with transaction_on(connection):
        execute(UPDATE, "a")
        other = Elsewhere(UPDATE, "a", on=second_connection)
        eventually(other.waits)
        execute("KILL QUERY %s", other.connection_id)
        other.join()
    assert other.error is not None
    assert code_of(other.error) == 1317
    assert is_infrastructure(other.error)


@pytest.mark.mariadb
def test_statement_over_its_time_limit_is_infrastructure(rows, spoilt):
    execute("SET max_statement_time = 0.05")
    error = refusal(
        lambda: execute(
            "SELECT COUNT(*) FROM seq_1_to_100000 a, seq_1_to_100000 b WHERE MOD(a.seq, 2)"
        )
    )
    assert code_of(error) == 1969
    assert is_infrastructure(error)


@pytest.mark.mariadb
def test_read_only_server_is_infrastructure(rows):
    with server_set("read_only", 1):
        error = refusal(lambda: execute(UPDATE, "a"))
    assert code_of(error) == 1290
    assert is_infrastructure(error)
    execute(UPDATE, "a")


@pytest.mark.mariadb
@pytest.mark.parametrize("login", ["nobody:wrong", "recovery:wrong"])
def test_refused_login_is_infrastructure(login, transactional_db):
    stranger = connection.copy()
    stranger.settings_dict = dict(stranger.settings_dict)
    stranger.settings_dict["USER"], stranger.settings_dict["PASSWORD"] = login.split(":")
    assert is_infrastructure(refusal(stranger.ensure_connection))


@pytest.mark.sqlite
def test_locked_database_is_infrastructure(rows, second_connection, spoilt):
    execute("PRAGMA busy_timeout = 50")
    execute("BEGIN IMMEDIATE", on=second_connection)
    error = refusal(lambda: execute(UPDATE, "a"))
    execute("ROLLBACK", on=second_connection)
    assert "database is locked" in str(error)
    assert is_infrastructure(error)
    assert is_row_locked(error)


@pytest.mark.sqlite
def test_full_disk_is_infrastructure(rows, spoilt):
    execute("PRAGMA max_page_count = 1")  # SQLite makes it the pages there are
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
        )
        (free,) = cursor.fetchone()
    text = "x" * (free + 10_000_000)
    error = refusal(lambda: execute("UPDATE recovery_job SET last_error = %s", text))
    assert "full" in str(error)
    assert is_infrastructure(error)


@pytest.mark.sqlite
def test_read_only_database_is_infrastructure(rows, spoilt):
    execute("PRAGMA query_only = ON")
    assert is_infrastructure(refusal(lambda: execute(UPDATE, "a")))


@pytest.mark.sqlite
def test_broken_file_is_infrastructure(tmp_path, transactional_db):
    path = tmp_path / "broken.sqlite3"
    path.write_bytes(b"this is not a database at all" * 100)
    broken = connection.copy()
    broken.settings_dict = broken.settings_dict | {"NAME": str(path)}
    with closing(broken):
        error = refusal(lambda: execute("SELECT * FROM sqlite_master", on=broken))
    assert is_infrastructure(error)


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("INSERT INTO recovery_sample (name, labels, value, at) VALUES ('a', '', NULL, NULL)", ()),
        ("UPDATE recovery_job SET name = 'a' WHERE name = 'b'", ()),
    ],
)
def test_statements_own_fault_is_not_infrastructure(rows, sql, values):
    assert not is_infrastructure(refusal(lambda: execute(sql, *values)))


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE recovery_job SET nothing_of_this_name = 1",
        "INSERT INTO recovery_job (nothing_of_this_name) VALUES (1)",
        "SELECT * FROM nothing_of_this_name",
        "SELECT nothing_of_this_name FROM recovery_job",
        "SELECT nothing_of_this_name()",
        "SELECT FROM WHERE",
    ],
)
def test_broken_setup_is_infrastructure_that_no_second_try_mends(rows, sql):
    error = refusal(lambda: execute(sql))
    assert is_infrastructure(error)
    assert not is_passing(error)


@pytest.mark.mariadb
def test_index_that_is_missing_is_a_broken_setup(rows):
    error = refusal(lambda: execute("SELECT 1 FROM recovery_job FORCE INDEX (nothing)"))
    assert is_infrastructure(error)
    assert not is_passing(error)


@pytest.mark.mariadb
def test_right_that_is_missing_is_a_broken_setup(rows):
    url = os.environ.get("TEST_ADMIN_DATABASE_URL")
    if not url:
        pytest.skip("needs an administrator: run it through `python -m tests.servers --`")
    error = refusal(lambda: execute("UPDATE mysql.proc SET name = ''"))
    assert code_of(error) in (1142, 1143)
    assert is_infrastructure(error)
    assert not is_passing(error)


@pytest.mark.parametrize(
    "error",
    [
        TransactionManagementError("a query in a broken block"),
        ProgrammingError("not all arguments converted during bytes formatting"),
        OperationalError(1644, "no such table, says a trigger"),
        IntegrityError("no such luck"),
    ],
)
def test_errors_of_our_own_code_or_of_a_trigger_are_no_broken_setup(error):
    assert not is_infrastructure(error)


@pytest.mark.parametrize("code", [3032, 3100, 3101, 4031])
def test_what_mysql_says_at_an_end_of_its_own_is_passing(code):
    """Off-line, a hook of replication failed, certification failed, silent too long."""
    assert is_passing(OperationalError(code, "by the server"))


def test_broken_setup_is_not_tried_again(transactional_db):
    tries = []

    def action() -> None:
        tries.append(1)
        execute("SELECT * FROM nothing_of_this_name")

    assert is_infrastructure(refusal(lambda: with_retries(action)))
    assert len(tries) == 1


@pytest.mark.mariadb
def test_value_that_does_not_fit_is_not_infrastructure(rows):
    error = refusal(lambda: execute("UPDATE recovery_job SET heartbeat_pid = %s", 2**63))
    assert not is_infrastructure(error)
    error = refusal(lambda: execute("UPDATE recovery_job SET heartbeat_at = 'x'"))
    assert not is_infrastructure(error)


@pytest.mark.parametrize("error", [ValueError("locked"), OSError(28, "full"), KeyError(1213)])
def test_errors_of_others_are_not_infrastructure(error):
    assert not is_infrastructure(error)


def test_lost_interface_is_infrastructure():
    assert is_infrastructure(InterfaceError(0, ""))


ANYTHING = st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.floats(), st.booleans())


@given(st.sampled_from(DATABASE_ERRORS), st.lists(ANYTHING, max_size=3))
def test_any_error_can_be_judged(kind, arguments):
    error = kind(*arguments)
    assert is_infrastructure(error) in (True, False)
    assert isinstance(code_of(error), int)


@given(st.sampled_from([DataError, IntegrityError]), st.text())
def test_values_own_fault_is_never_infrastructure_on_sqlite(kind, text):
    assert not is_infrastructure(kind(f"{text} database is locked"))


def test_infrastructure_is_tried_again_and_the_last_error_raised(transactional_db):
    tries = []

    def action() -> None:
        tries.append(1)
        raise OperationalError(1213, f"try {len(tries)}")

    with pytest.raises(OperationalError, match="try 3"):
        with_retries(action, attempts=3)
    assert len(tries) == 3


def test_other_errors_are_raised_at_once(transactional_db):
    tries = []

    def action() -> None:
        tries.append(1)
        raise IntegrityError(1062, "duplicate")

    with pytest.raises(IntegrityError):
        with_retries(action)
    assert len(tries) == 1


def test_success_after_a_refusal_is_returned(transactional_db):
    answers = iter([OperationalError("database is locked"), "done"])

    def action() -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert with_retries(action) == "done"
