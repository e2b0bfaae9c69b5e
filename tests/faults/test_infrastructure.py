"""What the database's state causes is nobody's fault: no attempt is used up, nothing is lost."""

import threading
import time
from contextlib import closing, contextmanager, suppress

import dj_database_url
import MySQLdb
import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, connection

from ledger import poison
from ledger.models import Account, OutboxEntry
from ledger.outbox import JOB
from recovery.errors import code_of
from recovery.models import AuditRecord
from recovery.runner import run_job
from splits import lifecycle
from splits.finalize import INFRASTRUCTURE, finalize
from splits.models import OrderStatus, SplitOrder
from splits.steps import STEPS
from tests import admin
from tests.factories import AUTHOR, SplitOrderFactory
from tests.faults.proxy import AtCommit, Proxy
from tests.ledger.entries import (
    WORLD,
    assert_books_balance,
    drain,
    into,
    put,
    somebody_waits,
    state,
    store,
)
from tests.splits.state import assert_finalized_once
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

FINALIZE_JOB = "finalizeRetryWorker"
STORM_S = 2.0
LONGEST_S = 60
SPELL_S = 0.15


@pytest.fixture(autouse=True)
def _quick(settings):
    settings.JOB_LOCK_TTL_SEC = 2
    settings.JOB_BACKOFF_BASE_SEC = 0.05
    settings.JOB_OUTBOX_BATCH_SIZE = 40


@pytest.fixture
def wire():
    """Lead this process' connection to the database through a proxy."""
    config = connection.settings_dict
    port = config["PORT"]
    connection.close()
    with Proxy(int(port)) as proxy:
        config["PORT"] = str(proxy.port)
        try:
            yield proxy
        finally:
            proxy.mend()
            config["PORT"] = port
            connection.close()


# Each fault, again and again while both jobs work


class Storm:
    """Something that goes wrong in a thread of its own, in spells, for a while and until it hit."""

    def __init__(self, spell, has_hit):
        self.error = None
        self.has_hit = has_hit
        self._thread = threading.Thread(target=self._rage, args=(spell,), daemon=True)
        self._thread.start()

    def _rage(self, spell):
        begin = time.monotonic()
        try:
            while not self._is_over(time.monotonic() - begin):
                with spell():
                    time.sleep(SPELL_S)
                time.sleep(SPELL_S)
        except Exception as error:  # noqa: BLE001 - raised where it is looked at
            self.error = error

    def _is_over(self, raged_s):
        return raged_s > STORM_S and (self.has_hit() or raged_s > LONGEST_S)

    def rages(self):
        return self._thread.is_alive()

    def result(self):
        self._thread.join(60)
        assert self.error is None, self.error


@contextmanager
def an_administrator():
    with closing(admin.connect()) as link:
        link.select_db(connection.settings_dict["NAME"])
        cursor = link.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")  # no gap is locked
        yield cursor


@contextmanager
def deadlocks():
    """Lock accounts in the other order than the jobs, and weigh more: they are the victims."""
    with an_administrator() as cursor:
        lock = "SELECT 1 FROM ledger_account WHERE code = %s AND unit = 'm2' FOR UPDATE"
        cursor.execute("BEGIN")
        cursor.execute(
            "INSERT INTO ledger_transaction (event_key, event_type, content_hash, posted_at)"
            " SELECT CONCAT('x', seq), '', '', NOW() FROM seq_100000_to_100400"
        )
        cursor.execute(lock, [WORLD])  # the jobs' last one
        with suppress(AssertionError):
            eventually(somebody_waits, deadline_s=0.5)
        with suppress(MySQLdb.OperationalError):
            cursor.execute(lock, ["stock:ASH"])
        cursor.execute("ROLLBACK")
        yield


@contextmanager
def rows_held():
    """Hold the accounts and a lot for longer than anybody waits."""
    with an_administrator() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM ledger_account FOR UPDATE")
        cursor.execute("SELECT 1 FROM splits_lot ORDER BY id DESC LIMIT 1 FOR UPDATE")
        time.sleep(3)
        cursor.execute("ROLLBACK")
        yield


@contextmanager
def kills():
    """Kill every connection of the jobs' user."""
    with an_administrator() as cursor:
        kill(cursor)
    yield


def kill(cursor, but=()):
    user = connection.settings_dict["USER"]
    cursor.execute("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s", [user])
    for (connection_id,) in cursor.fetchall():
        if connection_id not in but:
            with suppress(MySQLdb.OperationalError):  # gone by itself
                cursor.execute(f"KILL {connection_id}")


@contextmanager
def no_room():
    """Take every connection that the server gives to users, those of the jobs too."""
    taken = []
    with admin.server_set("max_connections", 10), an_administrator() as cursor:
        try:
            for _ in range(3):
                with suppress(MySQLdb.OperationalError):
                    while True:
                        taken.append(as_the_jobs_do())
                kill(cursor, but={each.thread_id() for each in taken})
            yield
        finally:
            for each in taken:
                each.close()


def as_the_jobs_do():
    config = connection.settings_dict
    return MySQLdb.connect(
        host=config["HOST"],
        port=int(config["PORT"]),
        user=config["USER"],
        password=config["PASSWORD"],
    )


def read_only():
    return admin.server_set("read_only", 1)


SPELLS = {
    "deadlocks": (deadlocks, 1213),
    "rows held": (rows_held, 1205),
    "kills": (kills, 2013),
    "read only": (read_only, 1290),
    "no room": (no_room, 1040),
}


@pytest.fixture
def impatient():
    """Let the jobs wait a second for a lock at most."""
    options = connection.settings_dict["OPTIONS"]
    before = options["init_command"]
    options["init_command"] = before.replace("lock_wait_timeout=10", "lock_wait_timeout=1")
    assert options["init_command"] != before
    connection.close()
    yield
    options["init_command"] = before
    connection.close()


class Work:
    """Entries and orders for both jobs, and what must hold of them at the end."""

    def __init__(self):
        put("in", into("OAK", "100000"))
        put("two", into("ASH", "1"))
        drain()
        self.supplied = 0
        self.codes = set()
        self.supply()

    def supply(self):
        self.supplied += 1
        store((f"k{self.supplied}-{n}", f"lot:{n}", into("ASH", "1")) for n in range(40))
        SplitOrderFactory()

    def go_on(self):
        """Bring more, as far as the database takes it, and run both jobs."""
        with suppress(DatabaseError, InterfaceError):
            self.supply()
        self.run()

    def _note(self, execute, *args):
        try:
            return execute(*args)
        except DatabaseError as error:
            self.codes.add(code_of(error))
            raise

    def run(self):
        with connection.execute_wrapper(self._note):
            run_job(FINALIZE_JOB)
            run_job(JOB)

    def is_done(self):
        for pk in SplitOrder.objects.filter(status="draft").values_list("pk", flat=True):
            lifecycle.submit(pk)  # what the outage kept its publisher from
        self.run()
        return (
            not OutboxEntry.objects.exclude(status="posted").exists()
            and not SplitOrder.objects.exclude(status="finalized").exists()
        )

    def assert_done_and_nobody_blamed(self, log):
        eventually(self.is_done)
        orders = SplitOrder.objects.all()
        assert orders
        for order in orders:
            assert_finalized_once(order)
            assert (order.finalize_attempts, order.recovery_count) == (1, 0)
        assert not AuditRecord.objects.exists()
        # Under care a good entry's one attempt is counted as well.
        most = 1 if "entries_one_at_a_time" in log.text else 0
        assert not OutboxEntry.objects.filter(attempts__gt=most).exists()
        assert not OutboxEntry.objects.exclude(last_error="").exists()
        assert_books_balance()
        assert Account.objects.get(code="stock:OAK").balance == 100_000 - 10 * len(orders)

    def met(self, log):
        """Return the numbers of the database's errors that the jobs met."""
        logged = {getattr(record, "code", None) for record in list(log.records)}
        return {code for code in {*self.codes} | logged if isinstance(code, int)}


@pytest.mark.parametrize("name", SPELLS)
def test_jobs_weather_it_and_nobody_is_charged(name, caplog, impatient):
    spell, code = SPELLS[name]
    caplog.set_level("INFO", "recovery")
    work = Work()
    storm = Storm(spell, lambda: code in work.met(caplog))
    while storm.rages():
        work.go_on()
    storm.result()
    work.assert_done_and_nobody_blamed(caplog)
    assert code in work.met(caplog), work.met(caplog)


@contextmanager
def logged_in_at(url):
    """Let the jobs log in as the user of ``url``."""
    config, user = connection.settings_dict, dj_database_url.parse(url)
    before = {key: config[key] for key in ("USER", "PASSWORD")}
    connection.close()
    config |= {key: user[key] for key in before}
    try:
        yield
    finally:
        config |= before
        connection.close()


def can_connect():
    with suppress(OperationalError):
        connection.ensure_connection()
        return True
    return False


def test_user_with_no_connection_left_charges_nobody(caplog):
    work = Work()
    with admin.login("WITH MAX_USER_CONNECTIONS 1") as url, logged_in_at(url):
        with closing(as_the_jobs_do()):
            work.run()
        eventually(can_connect)
        work.assert_done_and_nobody_blamed(caplog)
    assert 1226 in work.met(caplog)


def test_server_that_takes_less_at_once_than_before_charges_nobody(caplog, settings):
    settings.JOB_OUTBOX_BATCH_SIZE = 500
    work = Work()
    for _ in range(25):  # what a batch sends is to be larger than the server's first buffer, 16 KB
        work.supply()
    with admin.server_set("max_allowed_packet", 4_096):
        connection.close()
        work.assert_done_and_nobody_blamed(caplog)
    connection.close()
    assert 1153 in work.codes


@pytest.mark.parametrize("where", [*AtCommit, None])
def test_wire_that_is_cut_again_and_again_charges_nobody(where, wire, caplog):
    """In the middle, before and after COMMITs."""
    caplog.set_level("INFO", "recovery")
    work = Work()

    @contextmanager
    def spell():
        wire.cut_commits(where, 3) if where else wire.cut()
        yield

    def has_hit():
        return wire.commits_cut > 5 if where else work.met(caplog)

    storm = Storm(spell, has_hit)
    while storm.rages():
        work.go_on()
    storm.result()
    wire.mend()
    work.assert_done_and_nobody_blamed(caplog)
    assert has_hit()


# What is left in an outage is given back


@pytest.fixture
def outage_in(monkeypatch, wire, settings):
    """Return what lets the database go away when a step is taken the first time, each alone."""
    settings.JOB_FINALIZE_BATCH_SIZE = 1

    def begin(step):
        original, left = STEPS[step], [1]

        def take(order):
            if left:
                left.pop()
                wire.refuse()
            original(order)

        monkeypatch.setitem(STEPS, step, take)

    return begin


@pytest.mark.parametrize("step", ["validate", "create_outputs"])
def test_order_that_an_outage_cut_off_is_given_back_uncharged_by_the_next_run(
    step, outage_in, wire
):
    put("in", into("OAK", "10"))
    order = SplitOrderFactory()
    outage_in(step)
    assert run_job(FINALIZE_JOB).status == "ok"
    assert run_job(FINALIZE_JOB).status == "skipped"
    wire.mend()
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.finalize_attempts) == (True, 1)
    assert eventually(lambda: run_job(JOB).status == "ok"), "whatever job is next"
    order.refresh_from_db()
    assert (order.status, order.finalize_in_progress) == (OrderStatus.READY, False)
    assert (order.finalize_attempts, order.last_finalize_error_code) == (0, INFRASTRUCTURE)
    assert finalize(order.pk, author=AUTHOR, now=True)
    assert_finalized_once(order)
    assert (order.finalize_attempts, order.recovery_count) == (1, 0)


def test_failure_that_an_outage_kept_from_being_written_is_written_once_by_the_next_run(
    wire, monkeypatch, settings
):
    settings.JOB_FINALIZE_BATCH_SIZE = 1
    order = SplitOrderFactory()

    def fail(_order):
        raise ValueError("a fault of its own")

    def delay_sec(_attempt):
        wire.refuse()
        return 60

    with monkeypatch.context() as broken:
        broken.setitem(STEPS, "create_outputs", fail)
        broken.setattr("recovery.backoff.delay_sec", delay_sec)
        run_job(FINALIZE_JOB)
    wire.mend()
    for _ in range(2):
        assert eventually(lambda: run_job(JOB).status == "ok")
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.finalize_attempts) == (False, 1)
    assert "a fault of its own" in order.last_finalize_error
    assert AuditRecord.objects.get().action == "split-order-finalize-failed"


def test_order_reset_meanwhile_is_not_given_back_again(outage_in, wire):
    order = SplitOrderFactory()
    outage_in("create_outputs")
    run_job(FINALIZE_JOB)
    wire.mend()
    this = SplitOrder.objects.filter(pk=order.pk)
    assert this.reset(1, status="ready", next_finalize_at=None, recovered_at=[])
    before = this.values().get()
    assert eventually(lambda: run_job(JOB).status == "ok")
    assert this.values().get() == before


def test_claim_of_which_no_commit_was_answered_is_given_back(wire):
    order = SplitOrderFactory()
    connection.ensure_connection()
    wire.cut_commits(AtCommit.AFTER, 4)
    with pytest.raises(DatabaseError):
        finalize(order.pk, author=AUTHOR)
    wire.mend()
    connection.close()
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.finalize_attempts) == (True, 1)
    assert run_job(JOB).status == "ok"
    order.refresh_from_db()
    assert (order.finalize_in_progress, order.finalize_attempts) == (False, 0)
    assert finalize(order.pk, author=AUTHOR, now=True)
    assert_finalized_once(order)


def test_entry_worked_under_care_in_an_outage_gets_its_attempt_back(wire, monkeypatch):
    entry = put("k", into("OAK", "1"))
    post_these, left = poison.post_these, [1]

    def post_in_an_outage(*args, **kwargs):
        if left:
            left.pop()
            wire.refuse()
        return post_these(*args, **kwargs)

    monkeypatch.setattr(poison, "post_these", post_in_an_outage)
    OutboxEntry.objects.filter(pk=entry.pk).update(last_error=poison.rows.DIED)
    OutboxEntry.objects.filter(pk=entry.pk).charge(delay_s=0, error=poison.rows.DIED)
    assert run_job(JOB).status == "failed"
    wire.mend()
    assert state(entry)[1] == 2
    assert eventually(lambda: run_job(FINALIZE_JOB).status == "ok")
    assert state(entry)[1] == 1
    assert eventually(lambda: run_job(JOB).result.get("posted"))
    assert state(entry)[0] == "posted"
