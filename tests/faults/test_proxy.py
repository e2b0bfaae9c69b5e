"""The proxy that breaks connections, between a driver and a real server."""

import MySQLdb
import pytest
import redis
from django.db import connection

from tests.faults.proxy import AtCommit, Proxy
from tests.recovery.engine import client

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def proxy():
    with Proxy(int(connection.settings_dict["PORT"])) as found:
        yield found


def connect(proxy, *, patience_s=60):
    config = connection.settings_dict
    return MySQLdb.connect(
        host="127.0.0.1",
        port=proxy.port,
        user=config["USER"],
        password=config["PASSWORD"],
        database=config["NAME"],
        read_timeout=patience_s,
    )


def insert(link, name):
    cursor = link.cursor()
    cursor.execute("INSERT INTO recovery_breakage (name) VALUES (%s)", [name])


@pytest.fixture
def table():
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE recovery_breakage (name VARCHAR(20)) ENGINE=InnoDB")
        yield
        cursor.execute("DROP TABLE recovery_breakage")


def stored():
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM recovery_breakage ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


def test_everything_passes_until_it_is_cut(proxy, table):
    link = connect(proxy)
    insert(link, "a")
    link.commit()
    assert stored() == ["a"]
    assert proxy.cut() == 1
    with pytest.raises(MySQLdb.OperationalError):
        insert(link, "b")
    again = connect(proxy)
    insert(again, "c")
    again.commit()
    assert stored() == ["a", "c"]


@pytest.mark.parametrize(("where", "left"), [(AtCommit.BEFORE, []), (AtCommit.AFTER, ["a"])])
def test_commit_is_cut_before_or_after_the_server_hears_it(proxy, table, where, left):
    link = connect(proxy)
    insert(link, "a")
    proxy.cut_commits(where)
    with pytest.raises(MySQLdb.OperationalError) as caught:
        link.commit()
    assert caught.value.args[0] in (2006, 2013)
    assert proxy.commits_cut == 1
    assert stored() == left


def test_refused_and_swallowed_connections_come_back_when_mended(proxy):
    proxy.refuse()
    with pytest.raises(MySQLdb.OperationalError):
        connect(proxy)
    proxy.mend()
    link = connect(proxy, patience_s=3)
    proxy.swallow()
    with pytest.raises(MySQLdb.OperationalError):
        link.query("SELECT 1")
    proxy.mend()
    assert connect(proxy).thread_id()


def test_redis_passes_too(redis_up):
    with Proxy(redis_up.port) as way:
        through = redis.Redis.from_url(way.url(redis_up.url))
        through.set("a", "1")
        assert client().get("a") == b"1"
