"""What the cluster's parent and sentinel decide; tests/faults/ kills real ones."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from recovery import cluster as module
from recovery import stopping
from recovery.cluster import QUEUE_LOST, GuardedCluster, GuardedSentinel, StopFlag
from recovery.stopping import Flag
from tests.recovery.engine import fork, forked

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def cluster(monkeypatch):
    """Return a cluster that starts nothing and kills nothing."""
    monkeypatch.setattr(module.signal, "signal", lambda *_args: None)
    made = GuardedCluster()
    made.sentinel = SimpleNamespace(
        pid=-1, exitcode=-9, alive=True, is_alive=lambda: made.sentinel.alive
    )
    monkeypatch.setattr(made, "start", lambda: module._guarded_at.__setattr__("value", now()))
    monkeypatch.setattr(made, "_kill_group", lambda: None)
    module._guarded_at.value = now()
    return made


def now():
    return time.monotonic()


def test_flag_set_in_a_forked_process_is_set_in_all():
    flag = Flag()
    assert not flag.wait(0.01)
    forked(flag.set)
    assert flag.is_set()
    assert flag.wait(0)


def test_flag_survives_a_process_killed_while_it_waits():
    flag = Flag()
    child = fork(lambda: flag.wait(60))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    flag.set()  # an Event would wait for the dead process to wake up
    assert flag.is_set()


def test_stop_flag_is_set_once_its_maker_is_gone():
    reading, writing = os.pipe()
    maker_is_gone, ready = os.pipe()

    def make():
        flag = StopFlag()
        fork(lambda: watch(flag))
        os.read(maker_is_gone, 5)

    def watch(flag):
        before = flag.is_set()
        os.write(ready, b"ready")
        after = flag.wait(60)
        os.write(writing, f"{before} {after} {stopping.asked()}".encode())

    assert forked(make) == 0
    assert os.read(reading, 50) == b"False True True"


def test_stop_flag_is_not_set_for_its_maker():
    assert not StopFlag().is_set()


def test_signal_asks_runs_to_stop(cluster):
    cluster.sig_handler(signal.SIGTERM, None)
    assert cluster.stopped_by == "SIGTERM"
    assert stopping.asked()


def test_sentinel_that_goes_round_is_left_alone(cluster):
    assert cluster._guarded()


def test_sentinel_that_hangs_is_replaced(cluster):
    module._guarded_at.value = now() - module.HUNG_AFTER_S
    assert not cluster._guarded()
    assert cluster._restart()
    assert cluster._guarded()
    assert cluster.restarts == 1


def test_sentinel_shows_in_each_round_that_it_does_not_hang():
    begun = now()
    module._guarded_at.value = 0
    StopFlag().wait(0)
    assert module._guarded_at.value >= begun


def test_sentinels_that_die_again_and_again_end_the_cluster(cluster, monkeypatch):
    cluster.sentinel.alive = False
    restarts = [cluster._restart() for _ in range(module.RESTARTS + 1)]
    assert restarts == [True] * module.RESTARTS + [False]
    monkeypatch.setattr(module, "RESTART_WINDOW_S", 0.0)
    assert cluster._restart(), "deaths of long ago do not count"


def reincarnated(monkeypatch, *, exitcode, timer=-1.0, role="worker"):
    """Return the exit status of a sentinel one of whose processes ended so."""
    sentinel = GuardedSentinel.__new__(GuardedSentinel)
    process = SimpleNamespace(pid=1, exitcode=exitcode, timer=SimpleNamespace(value=timer))
    sentinel.pool = [process] if role == "worker" else []
    sentinel.monitor = process if role == "monitor" else None
    sentinel.pusher = process if role == "pusher" else None
    monkeypatch.setattr(module.Sentinel, "reincarnate", lambda *_args: None)
    return forked(lambda: sentinel.reincarnate(process))


@pytest.mark.parametrize("role", ["worker", "monitor", "pusher"])
def test_killed_process_may_have_taken_a_queue_along(monkeypatch, role):
    assert reincarnated(monkeypatch, exitcode=-9, role=role) == QUEUE_LOST


@pytest.mark.parametrize(
    ("exitcode", "timer", "role"),
    [(-9, 42.0, "worker"), (0, -2.0, "worker"), (1, -1.0, "worker"), (0, -1.0, "pusher")],
)
def test_process_that_ended_busy_or_by_itself_is_replaced(monkeypatch, exitcode, timer, role):
    assert reincarnated(monkeypatch, exitcode=exitcode, timer=timer, role=role) == 0


def test_outage_of_the_database_is_said_once_and_so_is_its_end(cluster, monkeypatch, caplog):
    from django.db import OperationalError

    caplog.set_level("INFO")
    cluster._tick()
    caplog.clear()

    def gone():
        raise OperationalError(2002, "no server")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.ticker, "tick", gone)
        for _ in range(3):
            cluster._tick()
    cluster._tick()
    cluster._tick()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["tick_without_database", "database_back"]


def test_schedules_are_mended_at_the_start_and_now_and_then(cluster, monkeypatch):
    mended = []
    monkeypatch.setattr(module.schedules, "mend", lambda: mended.append(1))
    cluster._tick()
    cluster._tick()
    assert len(mended) == 1
    cluster._mended_at -= module.MEND_EVERY_S
    cluster._tick()
    assert len(mended) == 2


@pytest.mark.parametrize(("looks", "waits"), [([None], 0), ([["app.0002_x"], None, []], 2)])
def test_database_that_does_not_answer_does_not_end_the_wait_for_its_migrations(
    cluster, monkeypatch, looks, waits
):
    slept = []
    monkeypatch.setattr(module, "_missing_migrations", iter(looks).__next__)
    monkeypatch.setattr(cluster, "_sleep_until_next_second", lambda: slept.append(1))
    cluster._wait_for_migrations()
    assert len(slept) == waits
