"""Counters of several processes: read as one, merged once dead, never lost or doubled."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recovery import tallies

COUNTING = """
import os, signal, sys
from pathlib import Path
from settings.metrics import count_in
assert count_in(Path(sys.argv[1]))
from prometheus_client import Counter, Histogram
things = Counter("things", "Things.", ["kind"])
times = Histogram("times", "Times.", buckets=(1, 10))
for kind in sys.argv[2].split(","):
    things.labels(kind).inc()
    times.observe(5)
print("counted", flush=True)
sys.stdin.readline()
if os.fork() == 0:
    things.labels("child").inc()
    os._exit(0)
os.wait()
"""


class Counting:
    """A process that counted and waits."""

    def __init__(self, place: Path, kinds: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(place), kinds],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdin
        assert self.process.stdout
        self.pipes = self.process.stdin, self.process.stdout
        assert self.pipes[1].readline() == "counted\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self._end()

    def leave(self) -> None:
        self.pipes[0].write("\n")
        self.pipes[0].flush()
        self._end()

    def _end(self) -> None:
        self.process.wait(60)
        for pipe in self.pipes:
            pipe.close()


def values(place):
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for metric in tallies.read(place)
        for sample in metric.samples
    }


def files(place):
    return sorted(path.name for path in place.glob("*.db"))


def test_the_living_and_the_dead_are_counted_once_each(tmp_path):
    living, killed = Counting(tmp_path, "a,b"), Counting(tmp_path, "a,a")
    killed.kill()
    for _ in range(3):
        assert values(tmp_path) == {
            ("things_total", "a"): 3, ("things_total", "b"): 1,
            ("times_bucket", "1.0"): 0, ("times_bucket", "10.0"): 4, ("times_bucket", "+Inf"): 4,
            ("times_sum",): 20, ("times_count",): 4,
        }  # fmt: skip
    living.kill()


def test_files_of_the_dead_do_not_grow_without_end(tmp_path):
    for _ in range(4):
        Counting(tmp_path, "a").kill()
        tallies.merge_dead(tmp_path)
        assert files(tmp_path) == ["counter_merged.db", "histogram_merged.db"]
    assert values(tmp_path)["things_total", "a"] == 4
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".db") == ["lock"]


def test_a_forked_child_counts_in_files_of_its_own(tmp_path):
    Counting(tmp_path, "a").leave()
    owners = {name.rpartition("_")[2] for name in files(tmp_path)}
    assert len(owners) == 2
    assert values(tmp_path)["things_total", "child"] == 1
    assert values(tmp_path)["things_total", "a"] == 1


def crash_in(monkeypatch, name, at):
    """Let the merger die at the ``at``-th call of ``Path.<name>``."""
    real, calls = getattr(Path, name), iter(range(1, 100))

    def method(self, *args, **kwargs):
        if next(calls) == at:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, name, method)


@pytest.mark.parametrize(
    ("name", "at"),
    [*(("unlink", at) for at in range(1, 6)), *(("replace", at) for at in range(1, 4))],
)
def test_a_merger_killed_anywhere_loses_and_doubles_nothing(tmp_path, monkeypatch, name, at):
    Counting(tmp_path, "a,b").kill()
    tallies.merge_dead(tmp_path)
    Counting(tmp_path, "a").kill()
    before = {("things_total", "a"): 2, ("things_total", "b"): 1, ("times_count",): 3}
    with monkeypatch.context() as patch:
        crash_in(patch, name, at)
        with pytest.raises(KeyboardInterrupt):
            tallies.merge_dead(tmp_path)
    for _ in range(2):
        found = values(tmp_path)
        assert {key: found[key] for key in before} == before
    assert files(tmp_path) == ["counter_merged.db", "histogram_merged.db"]


def test_draft_of_a_crashed_merger_never_becomes_the_sum(tmp_path, monkeypatch):
    Counting(tmp_path, "a").kill()
    with monkeypatch.context() as patch:
        patch.setattr(tallies, "_write_journal", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tallies.merge_dead(tmp_path)
    (tmp_path / tallies.JOURNAL).write_text(json.dumps({"sums": [], "gone": []}))
    assert values(tmp_path)["things_total", "a"] == 1


def test_process_killed_before_it_counted_leaves_nothing_behind(tmp_path):
    (tmp_path / "counter_999999999-1.db").touch()
    assert values(tmp_path) == {}
    assert files(tmp_path) == ["counter_merged.db"]


def test_reader_gives_up_on_a_directory_that_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(tallies, "LOCK_PATIENCE_S", 0.05)
    with (tmp_path / tallies.LOCK).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(tallies.TalliesBusyError, match="holds the directory"):
            tallies.read(tmp_path)
    assert tallies.read(tmp_path) == []


def test_a_crowd_is_merged_at_the_start_of_any_process(tmp_path, monkeypatch):
    Counting(tmp_path, "a").kill()
    tallies.merge_a_crowd(tmp_path)
    assert "counter_merged.db" not in files(tmp_path)
    monkeypatch.setattr(tallies, "CROWD", 2)
    tallies.merge_a_crowd(tmp_path)
    assert files(tmp_path) == ["counter_merged.db", "histogram_merged.db"]


def test_file_of_another_users_process_is_let_alone(tmp_path, monkeypatch):
    def not_ours(_pid, _signal):
        raise PermissionError

    Counting(tmp_path, "a").kill()
    monkeypatch.setattr(os, "kill", not_ours)
    assert tallies.merge_dead(tmp_path) == 0
