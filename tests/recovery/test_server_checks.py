"""System checks of real servers: each finding is provoked there, and a sound one is silent."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.core.checks import CheckMessage
from django.db import connection

from ledger.checks import check_payload_size
from recovery.checks.databases import check_database
from recovery.checks.redis_server import check_redis
from tests import servers
from tests.processes import Manage
from tests.recovery.engine import client, connects

DEFAULT = ["default"]


def only(found: list[CheckMessage], *named: str) -> str | None:
    """Return the id of the only finding, None of no finding; its message names ``named``."""
    if not found:
        return None
    (message,) = found
    assert message.hint
    for name in named:
        assert name in message.msg
    return message.id


def database() -> list[CheckMessage]:
    return check_database(None, DEFAULT) + check_payload_size(None, DEFAULT)


def run(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture
def session(transactional_db: None) -> Iterator[None]:
    """Let a test spoil the session of its connection."""
    yield
    connection.close()


@pytest.mark.django_db
def test_database_of_the_tests_is_sound():
    assert database() == []


@pytest.mark.django_db
def test_databases_that_are_not_asked_for_are_left_alone(settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert check_database(None) == check_payload_size(None) == check_redis(None) == []


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("statement", "named", "found"),
    [
        ("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", "REPEATABLE-READ", "E006"),
        ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SERIALIZABLE", "E006"),
        ("SET time_zone = '+08:00'", "+08:00", "E007"),
        ("SET time_zone = SYSTEM", "SYSTEM", "E007"),
        ("SET NAMES latin1", "latin1", "E008"),
        ("SET NAMES utf8mb3", "utf8mb3", "E008"),
        ("SET innodb_lock_wait_timeout = 15", "15 s", "W008"),
    ],
)
def test_unsound_session_is_found(session, settings, statement, named, found):
    settings.JOB_LOCK_TTL_SEC = 15
    run(statement)
    assert only(database(), "'default'", named) == f"recovery.{found}"


@pytest.mark.mariadb
def test_wait_for_a_row_that_is_shorter_than_the_lease_is_sound(session, settings):
    settings.JOB_LOCK_TTL_SEC = 15
    run("SET innodb_lock_wait_timeout = 14")
    assert database() == []


@pytest.fixture
def sample_table(transactional_db: None) -> Iterator[None]:
    """Let a test spoil the table ``recovery_sample``; make it anew afterwards."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW CREATE TABLE recovery_sample")
        (_name, made_by) = cursor.fetchone()
    yield
    run("DROP TABLE recovery_sample")
    run(made_by)
    assert database() == []


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("change", "named", "found"),
    [
        ("ENGINE = Aria", "recovery_sample (Aria)", "E013"),
        ("DEFAULT CHARACTER SET latin1", "recovery_sample (latin1_swedish_ci)", "E011"),
        (
            "MODIFY name varchar(100) CHARACTER SET latin1 NOT NULL",
            "recovery_sample.name (latin1_swedish_ci)",
            "E011",
        ),
        (
            "MODIFY name varchar(100) CHARACTER SET utf8mb3 NOT NULL",
            "recovery_sample.name (utf8mb3_general_ci)",
            "E011",
        ),
        (
            "MODIFY labels varchar(190) COLLATE utf8mb4_general_ci NOT NULL",
            "recovery_sample.labels (utf8mb4_general_ci)",
            "E012",
        ),
    ],
)
def test_table_that_is_not_as_the_migrations_made_it_is_found(sample_table, change, named, found):
    run(f"ALTER TABLE recovery_sample {change}")
    assert only(database(), "'default'", named) == f"recovery.{found}"


@pytest.mark.mariadb
def test_table_of_somebody_else_is_none_of_our_business(session):
    run("CREATE TABLE theirs (name varchar(10)) ENGINE = Aria DEFAULT CHARACTER SET latin1")
    try:
        assert database() == []
    finally:
        run("DROP TABLE theirs")


@pytest.mark.mariadb
@pytest.mark.django_db
@pytest.mark.parametrize(("more", "found"), [(1, "recovery.W009"), (0, None)])
def test_server_must_take_the_largest_payload(settings, more, found):
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (packet,) = cursor.fetchone()
    settings.OUTBOX_MAX_PAYLOAD_BYTES = packet // 2 + more
    named = f"OUTBOX_MAX_PAYLOAD_BYTES={packet // 2 + more}"
    assert only(database(), named, str(packet)) == found


class OldMariaDB(servers.MariaDB):
    """A server that says it is of a version from before SKIP LOCKED."""

    def command(self) -> list[str]:
        return [*super().command(), "--version=10.5.23-MariaDB"]


@pytest.fixture
def old_server() -> Iterator[servers.MariaDB]:
    """Run a server that is too old, its database empty."""
    with servers.folder_for("mariadb") as folder:
        server = OldMariaDB(folder, servers.free_port())
        server.install()
        with servers.running(server):
            yield server


@pytest.mark.mariadb
def test_server_that_is_too_old_stops_migrate_and_check(old_server):
    manage = Manage()
    environment = {"DATABASE_URL": old_server.url, "REDIS_URL": "redis://127.0.0.1:1/0"}
    for command in (("check", "--database", "default"), ("migrate",)):
        done = manage(*command, env=environment)
        assert done.returncode == 1
        assert "(recovery.E010) The server of database 'default' is MariaDB 10.5.23" in done.stderr
        assert "(recovery.W010) Redis cannot be used" in done.stderr
    assert manage("check", env=environment).returncode == 0, "it does not ask the servers"
    manage.clean_up()


def redis() -> list[CheckMessage]:
    return check_redis(None, DEFAULT)


def test_without_redis_there_is_nothing_to_say(no_redis):
    assert redis() == []


def test_sound_redis_is_silent(redis_up):
    assert redis() == []


def test_redis_that_is_not_there_is_told(settings):
    settings.REDIS_URL = "redis://:hush@127.0.0.1:1/0"
    assert only(redis(), "127.0.0.1:1", "degraded") == "recovery.W010"
    assert "hush" not in str(redis())


def test_redis_that_hangs_is_told_soon(redis_up, settings, monkeypatch):
    settings.REDIS_TIMEOUT_SEC = 0.2
    redis_up.pause()
    tried = connects(monkeypatch)
    assert only(redis(), "Timeout", "degraded") == "recovery.W010"
    assert len(tried) == 1, "one try"


def test_redis_that_wants_another_password_is_told(redis_up):
    server = client()
    server.config_set("requirepass", "hush-hush")
    try:
        assert only(redis(), "must be called with the client already authenticated") == (
            "recovery.W010"
        )
    finally:
        server.config_set("requirepass", "")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_redis_that_may_throw_locks_away_is_told(redis_up, policy):
    client().config_set("maxmemory-policy", policy)
    try:
        assert only(redis(), f"maxmemory-policy {policy}", "locks") == "recovery.W011"
    finally:
        client().config_set("maxmemory-policy", "noeviction")


def test_replica_is_told(redis_up):
    client().replicaof("127.0.0.1", "1")
    try:
        assert only(redis(), "replica", "degraded") == "recovery.W013"
    finally:
        client().replicaof("NO", "ONE")


def test_user_who_may_not_ask_for_the_servers_state_is_no_outage(redis_up, settings):
    client().acl_setuser(
        "worker", enabled=True, passwords=["+hush"], commands=["+@all", "-info"], keys=["*"]
    )
    client().config_set("maxmemory-policy", "allkeys-lru")
    settings.REDIS_URL = redis_up.url.replace("//", "//worker:hush@")
    try:
        assert redis() == []
    finally:
        settings.REDIS_URL = redis_up.url
        client().config_set("maxmemory-policy", "noeviction")
        client().acl_deluser("worker")


class OldRedis(socketserver.StreamRequestHandler):
    """As much of Redis 5 as a client asks for; no such server is to be had."""

    INFO = b"redis_version:5.0.14\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n"

    def handle(self) -> None:
        while head := self.rfile.readline():
            words = [self._word() for _ in range(int(head[1:]))]
            self.wfile.write(self.answer(words[0].upper()))

    def _word(self) -> bytes:
        length = int(self.rfile.readline()[1:])
        return self.rfile.read(length + 2)[:length]

    def answer(self, command: bytes) -> bytes:
        if command == b"INFO":
            return b"$%d\r\n%s\r\n" % (len(self.INFO), self.INFO)
        if command == b"PING":
            return b"+PONG\r\n"
        return b"-ERR unknown command `%s`, with args beginning with: \r\n" % command


@contextmanager
def old_redis() -> Iterator[str]:
    """Serve an old Redis; yield its URL."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OldRedis) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("query", "named"), [("", "older than 6"), ("?protocol=2", "5.0")])
def test_redis_that_is_too_old_is_told(settings, query, named):
    with old_redis() as url:
        settings.REDIS_URL = url + query
        assert only(redis(), named) == "recovery.W012"
