"""The queue's rungs: Redis list, table, and back."""

import pytest
from django.db import OperationalError
from django_q.brokers import get_broker
from django_q.models import OrmQ

from recovery import broker as module
from recovery import link
from recovery.broker import RungBroker
from tests.recovery.engine import client, in_thread

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "django_q:recovery:q"


@pytest.fixture
def broker(monkeypatch):
    monkeypatch.setattr(module, "LEFTOVERS_EVERY_S", 0.0)
    monkeypatch.setattr(link, "POP_TIMEOUT_S", 0.05)  # nobody pushes meanwhile
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    return RungBroker("recovery")


def tasks(broker):
    return [payload for _, payload in broker.dequeue() or []]


def test_django_q_uses_this_broker():
    assert isinstance(get_broker(), RungBroker)


def test_task_goes_through_the_redis_list_alone(redis_up, broker):
    broker.enqueue("task")
    assert client().lrange(LIST, 0, -1) == [b"task"]
    assert not OrmQ.objects.exists()
    assert broker.dequeue() == [(None, "task")]
    assert client().llen(LIST) == 0


def test_without_redis_the_table_is_the_queue(no_redis, broker):
    broker.enqueue("task")
    ((task_id, payload),) = broker.dequeue()
    assert payload == "task"
    assert not broker.dequeue(), "a task that was taken is not taken twice"
    broker.acknowledge(task_id)
    assert not OrmQ.objects.exists()


def test_task_in_the_table_is_taken_once_by_two_clusters(no_redis, broker):
    broker.enqueue("task")
    other = in_thread(lambda: tasks(RungBroker("recovery")))
    assert tasks(broker) + other == ["task"]


def test_task_of_an_outage_lands_in_the_table_and_is_drained_afterwards(
    redis_up, broker, monkeypatch
):
    monkeypatch.setattr(link, "RETRY_AFTER_S", 0.0)
    redis_up.kill()
    broker.enqueue("during")
    assert OrmQ.objects.count() == 1
    redis_up.start()
    broker.enqueue("after")
    assert client().lrange(LIST, 0, -1) == [b"after"]
    assert sorted(tasks(broker) + tasks(broker)) == ["after", "during"]


def test_task_in_the_table_is_taken_while_redis_is_down(redis_up, broker):
    redis_up.kill()
    broker.enqueue("task")
    assert tasks(broker) == ["task"]


def test_empty_queue_is_no_task(rung, broker):
    assert not broker.dequeue()


def test_taking_survives_an_outage_of_the_database_and_says_it_once(
    rung, broker, monkeypatch, caplog
):
    def gone():
        raise OperationalError(2002, "no server")

    with monkeypatch.context() as patch:
        patch.setattr(broker.table, "take", gone)
        for _ in range(3):
            assert not broker.dequeue()
    broker.enqueue("task")
    assert tasks(broker) == ["task"]
    said = [r.getMessage() for r in caplog.records]
    assert said.count("queue_table_unreachable") == 1


def test_task_is_had_from_redis_while_the_database_is_out(redis_up, broker, monkeypatch):
    def gone():
        raise OperationalError(2002, "no server")

    broker.enqueue("task")
    monkeypatch.setattr(broker.table, "take", gone)
    assert tasks(broker) == ["task"]


def test_acknowledging_survives_an_outage_of_the_database(no_redis, broker, monkeypatch):
    def gone(_task_id):
        raise OperationalError(2002, "no server")

    monkeypatch.setattr(broker.table, "acknowledge", gone)
    broker.acknowledge(1)


def test_key_of_a_wrong_type_makes_no_busy_loop(redis_up, broker, monkeypatch):
    client().set(LIST, "junk")
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    assert broker.dequeue() is None
    assert waits == [pytest.approx(0.2)]
    broker.enqueue("task")
    assert tasks(broker) == ["task"], "by the table"


def test_junk_in_the_list_is_handed_on_to_be_refused(redis_up, broker):
    client().rpush(LIST, b"\xff\xfe")
    assert tasks(broker) == ["\ufffd\ufffd"]


def test_list_nobody_pops_does_not_grow_without_end(redis_up, broker, monkeypatch):
    monkeypatch.setattr(module, "QUEUE_LIMIT", 3)
    for number in range(6):
        broker.enqueue(f"task {number}")
    assert client().lrange(LIST, 0, -1) == [b"task 3", b"task 4", b"task 5"]


def test_sizes_and_purge_cover_both_rungs(redis_up, broker):
    broker.table.enqueue("in the table")
    broker.enqueue("in the list")
    assert broker.queue_size() == 2
    broker.purge_queue()
    assert broker.queue_size() == 0


def test_cluster_may_start_on_either_rung(redis_up, broker):
    assert broker.ping()
    assert broker.info() == "Redis list"
    redis_up.kill()
    broker.enqueue("task")
    assert broker.ping()
    assert broker.info() == "database table"
    assert broker.queue_size() == 1


def test_copy_for_another_process_has_both_rungs(redis_up, broker):
    import pickle

    broker.enqueue("task")
    copy = pickle.loads(pickle.dumps(broker))
    assert tasks(copy) == ["task"]


def test_status_of_a_cluster_is_in_redis_for_a_while_or_nowhere(redis_up, broker):
    key = "django_q:recovery:cluster:1"
    broker.set_stat(key, "status", 300)
    assert 0 < client().ttl(key) <= 300
    assert (broker.get_stat(key), broker.get_stats("django_q:recovery:cluster:*")) == (
        "status",
        ["status"],
    )
    assert broker.get_stat("django_q:recovery:cluster:2") is None
    redis_up.kill()
    broker.set_stat(key, "status", 3)
    assert link.is_down()
    assert (broker.get_stat(key), broker.get_stats("django_q:recovery:cluster:*")) == (None, [])


def test_publishing_the_status_does_not_try_a_redis_that_is_down(redis_up, broker, monkeypatch):
    redis_up.kill()
    broker.set_stat("key", "status", 3)
    monkeypatch.setattr(link, "RETRY_AFTER_S", 0.0)
    redis_up.start()
    broker.set_stat("key", "status", 3)
    assert link.is_down()
    assert client().get("key") is None
