"""The link to Redis: fails fast, says so once, comes back by itself."""

import os
import signal
from contextlib import suppress

import pytest
import redis

from recovery import link
from recovery.link import RedisDownError
from tests.recovery.engine import connects, fork, forked
from tests.waiting import eventually


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def ping():
    return link.call(lambda client: client.ping())


def pinged():
    with suppress(RedisDownError):
        return ping()


def test_without_an_address_there_is_no_redis_and_no_outage(no_redis):
    assert not link.usable()
    assert not link.is_down()
    with pytest.raises(RedisDownError):
        ping()
    assert not link.is_down()


def test_outage_is_said_once_and_so_is_its_end(redis_up, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(link, "RETRY_AFTER_S", 0.0)
    redis_up.kill()
    for _ in range(5):
        with pytest.raises(RedisDownError):
            ping()
    assert messages(caplog) == ["redis_down"]
    redis_up.start()
    assert ping()
    assert ping()
    assert messages(caplog) == ["redis_down", "redis_back"]


def test_while_down_only_one_call_in_a_while_tries(redis_up, monkeypatch):
    monkeypatch.setattr(link, "RETRY_AFTER_S", 3_600.0)
    redis_up.kill()
    tried = []
    for _ in range(5):
        with pytest.raises(RedisDownError):
            link.call(lambda client: tried.append(1) or client.ping())
    assert tried == [1]
    assert not link.usable()


def test_it_comes_back_by_itself(redis_up, monkeypatch):
    monkeypatch.setattr(link, "RETRY_AFTER_S", 0.3)
    redis_up.kill()
    with pytest.raises(RedisDownError):
        ping()
    redis_up.start()
    eventually(link.usable)
    assert ping()
    assert not link.is_down()


def test_frozen_server_is_given_up_within_its_time_out(redis_up, settings, monkeypatch):
    settings.REDIS_TIMEOUT_SEC = 0.5
    redis_up.pause()
    tried = connects(monkeypatch)
    with pytest.raises(RedisDownError):
        ping()
    assert len(tried) == 1, "one try"


def test_restarted_server_is_no_outage_for_connections_from_before(redis_up, caplog):
    assert ping()
    redis_up.restart()
    assert ping()
    assert messages(caplog) == []


def test_refused_command_is_no_outage_and_is_said_once(redis_up, caplog):
    link.call(lambda client: client.lpush("list", "x"))
    for _ in range(3):
        with pytest.raises(RedisDownError, match="WRONGTYPE"):
            link.call(lambda client: client.get("list"))
    assert not link.is_down()
    assert messages(caplog) == ["redis_refused"]


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.OutOfMemoryError("command not allowed"),
        redis.exceptions.ReadOnlyError("You can't write against a read only replica."),
        redis.exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        redis.exceptions.AuthenticationError("no"),
        redis.exceptions.BusyLoadingError("loading"),
        redis.exceptions.TimeoutError("slow"),
    ],
)
def test_server_in_no_state_to_serve_is_an_outage(redis_up, error):
    def fail(_client):
        raise error

    with pytest.raises(RedisDownError):
        link.call(fail)
    assert link.is_down()


def test_server_that_only_reads_is_not_back(redis_up, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(link, "RETRY_AFTER_S", 0.0)
    admin = link.connect(redis_up.url, socket_timeout=60)
    admin.config_set("maxmemory", "1")
    try:
        with pytest.raises(RedisDownError):
            link.call(lambda client: client.set("key", "value"))
        for _ in range(3):
            with pytest.raises(RedisDownError):
                link.call(lambda client: client.get("key"))
        assert messages(caplog) == ["redis_down"]
    finally:
        admin.config_set("maxmemory", "0")
    assert ping()
    assert messages(caplog) == ["redis_down", "redis_back"]


def test_outage_found_by_one_forked_process_is_known_to_all(redis_up, monkeypatch):
    monkeypatch.setattr(link, "RETRY_AFTER_S", 3_600.0)
    assert ping()
    redis_up.kill()

    def find_out():
        with pytest.raises(RedisDownError):
            ping()

    assert forked(find_out) == 0
    assert link.is_down()
    assert not link.usable()


def test_process_that_is_stopped_in_its_try_keeps_no_other_from_trying(
    redis_up, monkeypatch, settings
):
    settings.REDIS_TIMEOUT_SEC = 0.2
    monkeypatch.setattr(link, "RETRY_AFTER_S", 0.0)
    redis_up.kill()
    with pytest.raises(RedisDownError):
        ping()
    redis_up.start()

    def stop_in_the_try():
        monkeypatch.setattr(
            redis.Redis, "set", lambda *_a, **_k: signal.raise_signal(signal.SIGSTOP)
        )
        ping()

    child = fork(stop_in_the_try)
    try:
        assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
        eventually(lambda: pinged())
        assert not link.is_down()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_turn_is_had_where_no_file_in_memory_may_be_made(monkeypatch):
    def refused(*_args):
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", refused, raising=False)
    with link._Turn().taken() as ours:
        assert ours


def test_forked_process_has_connections_of_its_own(redis_up):
    def own():
        return link.call(lambda client: client.client_id())

    parents = own()
    reading, writing = os.pipe()
    assert forked(lambda: os.write(writing, str(own()).encode()) and None) == 0
    assert int(os.read(reading, 20)) != parents
    assert own() == parents
