"""The runbook says what the code does, and what it tells to do works."""

import re
import signal
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import get_commands
from django.db import OperationalError, connection

from ledger.models import ErrorCode
from recovery.errors import is_row_locked
from recovery.models import AuditRecord
from splits import audit, errors
from splits.errors import SplitError
from splits.finalize import INFRASTRUCTURE, UNEXPECTED, Ending, finalize
from splits.models import OrderStatus
from tests.factories import AUTHOR, SplitOrderFactory, hang
from tests.ledger.entries import into, put
from tests.splits.state import assert_finalized_once
from tests.waiting import eventually

ROOT = Path(settings.BASE_DIR)
TEXT = (ROOT / "docs" / "runbook.md").read_text()
CODE = "".join(
    file.read_text()
    for folder in ("recovery", "ledger", "splits", "settings")
    for file in sorted((ROOT / folder).rglob("*.py"))
)
CHECKS = ("recovery/checks/*.py", "ledger/checks.py", "splits/checks.py")
HAND = "INC-42: reset by hand"
SQL = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)


def rows_of(heading: str) -> set[str]:
    """Return what is named in the first column of the table with ``heading``."""
    table = TEXT.split(f"| {heading} |")[1].split("\n\n")[0]
    firsts = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return {name for first in firsts for name in re.findall(r"`(\w[\w.]*)", first)}


def test_each_check_has_an_id_of_its_own_and_is_listed():
    sources = "".join(file.read_text() for place in CHECKS for file in ROOT.glob(place))
    ids = re.findall(r'id="(recovery\.[EW]\d{3})"', sources)
    assert len(ids) > 25
    assert len(set(ids)) == len(ids)
    assert rows_of("id | found | set") == set(ids)


def test_codes_are_those_there_are():
    assert rows_of("code of an entry | meaning | do") == set(ErrorCode.values)
    of_orders = {it.code for it in vars(errors).values() if _is_split_error(it)}
    listed = rows_of("code of an order | meaning | do")
    assert listed <= of_orders | {UNEXPECTED, INFRASTRUCTURE}


def _is_split_error(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, SplitError)


def test_events_are_those_there_are_and_no_alarm_is_left_out():
    logged = set(re.findall(r'(?:logger\.\w+|log)\(\s*(?:finding\.level, )?"(\w+)"', CODE))
    logged |= {"log_record_unprintable", "request_finished", "request_failed"}
    alarms = set(re.findall(r'logger\.(?:error|critical|exception)\(\s*"(\w+)"', CODE))
    listed = rows_of("event | says")
    assert listed <= logged
    assert alarms <= listed


def test_metrics_are_those_there_are():
    for name in rows_of("metric | worry if"):
        assert f'"{name.removesuffix("_total")}"' in CODE or f'"{name}"' in CODE, name


def test_commands_and_settings_exist():
    assert set(re.findall(r"manage\.py (\w+)", TEXT)) <= {*get_commands(), "dbshell", "shell"}
    prefixes = "JOB|SPLIT|DATABASE|REDIS|METRICS|LOG|SILENCED"
    for name in set(re.findall(rf"\b(?:{prefixes})_[A-Z_]+\b", TEXT)):
        assert hasattr(settings, name), name


def test_links_within_lead_somewhere():
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", it).lower().replace(" ", "-") for it in headings}
    assert set(re.findall(r"\(#([\w-]+)\)", TEXT)) <= anchors


def by_hand(start: str) -> str:
    """Return the reset by hand that begins with ``start``."""
    (found,) = (it for it in SQL if HAND in it and it.startswith(start))
    return str(found)


def statements(sql: str) -> list[str]:
    return [it for it in map(str.strip, sql.split(";\n")) if it]


def assert_reset_by_hand(order) -> None:
    """Assert that the order is ready under a new epoch, on the record, and can be finalized."""
    order.refresh_from_db()
    assert (order.status, order.finalize_in_progress) == (OrderStatus.READY, False)
    assert (order.finalize_epoch, order.recovery_count) == (2, 1)
    (recovered_at,) = order.recovered_at
    assert datetime.fromisoformat(recovered_at).utcoffset() == timedelta(0)
    record = AuditRecord.objects.get()
    assert (record.action, record.target_id) == (
        "split-order-finalize-stuck-recovered",
        order.number,
    )
    assert (record.actor, record.reason) == ("cli:anna", HAND)
    assert (record.before["epoch"], record.after["epoch"]) == (1, 2)
    assert record.evidence["finalizer"] == "dead-host:1:token"
    assert "granted" in record.evidence["proof"]["how"]
    order.refresh_from_db()
    outcome = finalize(order.pk, author=AUTHOR)
    assert outcome is not None
    assert outcome.ending is Ending.FINALIZED, "it is due"
    assert_finalized_once(order)


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_reset_by_hand_on_mariadb_is_complete(second_connection):
    order = hang(SplitOrderFactory(number="SO-1001"))
    with second_connection.cursor() as cursor:
        changed = []
        for statement in statements(by_hand("SET time_zone")):
            cursor.execute(statement)
            changed += [cursor.rowcount] if statement.startswith(("INSERT", "UPDATE")) else []
    assert changed == [1, 1]
    assert_reset_by_hand(order)


@pytest.mark.sqlite
@pytest.mark.django_db(transaction=True)
def test_reset_by_hand_on_sqlite_is_complete():
    order = hang(SplitOrderFactory(number="SO-1001"))
    other = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)
    try:
        for statement in statements(by_hand("BEGIN IMMEDIATE")):
            other.execute(statement)
    finally:
        other.close()
    assert_reset_by_hand(order)


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_questions_to_the_server_are_answered(second_connection):
    hang(SplitOrderFactory(number="SO-1001"))
    asked = [it for sql in SQL if HAND not in sql for it in statements(sql)]
    assert len(asked) >= 6
    with second_connection.cursor() as cursor:
        for statement in asked:
            cursor.execute(statement)
            if statement.startswith("SELECT number"):
                assert cursor.fetchall()


def question(part: str) -> str:
    """Return the one question to the server that holds ``part``."""
    (found,) = (it for sql in SQL if HAND not in sql for it in statements(sql) if part in it)
    return found


def asked(link, sql: str) -> list[dict[str, object]]:
    """Return the rows of a question by the names of its columns."""
    with link.cursor() as cursor:
        cursor.execute(sql)
        names = [it[0] for it in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def proof_is_granted(link) -> bool:
    """Ask for the row without waiting, as step 2 does."""
    with link.cursor() as cursor:
        cursor.execute("START TRANSACTION")
        try:
            cursor.execute(question("FOR UPDATE NOWAIT"))
            return bool(cursor.fetchall())
        except OperationalError as error:
            if not is_row_locked(error):
                raise
            return False
        finally:
            cursor.execute("ROLLBACK")


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_four_steps_are_done_by_hand_on_a_client_that_was_stopped(manage, second_connection):
    """In the order given, on an order whose finalizer really hangs in its transaction."""
    link = second_connection
    order = SplitOrderFactory(number="SO-1001")
    put("received", into("OAK", "10"))
    fault = {
        "RECOVERY_FAULTPOINTS": "finalize.in_step.create_outputs=stop",
        "DATABASE_IDLE_TRANSACTION_SEC": "600",
    }
    finalizer = manage.start("finalize", order.number, env=fault)
    eventually(finalizer.is_stopped)
    short = {"JOB_FINALIZE_STUCK_THRESHOLD_SEC": "1"}

    # 1. Check the flag and its age.
    (row,) = asked(link, question("AS age_s"))
    assert (row["number"], row["epoch"]) == (order.number, 1)
    assert str(row["finalizer"]).split(":")[1] == str(finalizer.pid)
    eventually(lambda: int(str(asked(link, question("AS age_s"))[0]["age_s"])) > 1)
    looked = manage("recover_stuck", "--dry-run", env=short)
    assert looked.returncode == 1, "it is held"
    assert re.search(r"^SO-1001: no progress for \d+ s, finalizer .* held by ", looked.stdout, re.M)

    # 2. Prove that no transaction hangs: one does.
    assert not proof_is_granted(link)
    refused = manage("recover_stuck", order.number, "--reason", HAND, env=short)
    assert refused.returncode == 1
    (connection_id,) = re.findall(r"^SO-1001: held by connection (\d+) ", refused.stdout, re.M)
    (holder,) = (
        it for it in asked(link, question("INNODB_TRX")) if str(it["connection"]) == connection_id
    )
    assert holder["COMMAND"] == "Sleep"
    port = int(str(holder["HOST"]).rpartition(":")[2])
    assert port in finalizer.local_ports(), "the port tells the process"
    order.refresh_from_db()
    assert order.finalize_in_progress, "who is held is left alone"
    finalizer.signal(signal.SIGKILL)
    finalizer.finish()
    assert eventually(lambda: proof_is_granted(link))

    # 3. Recover by hand, on the record.
    changed = []
    with link.cursor() as cursor:
        for statement in statements(by_hand("SET time_zone")):
            cursor.execute(statement)
            changed += [cursor.rowcount] if statement.startswith(("INSERT", "UPDATE")) else []
    assert changed == [1, 1]

    # 4. Run the retry worker again.
    ran = manage("run_job", "finalizeRetryWorker")
    assert (ran.returncode, "finalized: 1" in ran.stdout) == (0, True), ran.stdout
    assert manage("run_job", "processLedgerOutbox").returncode == 0
    assert_finalized_once(order)
    order.refresh_from_db()
    assert (order.finalize_epoch, order.finalize_attempts, order.recovery_count) == (3, 2, 1)
    found = manage("audit", "search", "--target", "split-order/SO-1001", "--json").json()
    (record,) = found["records"]
    assert (record["action"], record["actor"]) == (audit.RECOVERED, "cli:anna")
    assert (record["reason"], record["evidence"]["proof"]["how"]) == (
        HAND,
        "SELECT FOR UPDATE NOWAIT was granted",
    )
