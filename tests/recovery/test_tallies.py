"""Counters of several processes: read as one, merged once dead, never lost or doubled."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from recovery import tallies

pytestmark = pytest.mark.once

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


def test_file_that_is_full_grows_and_loses_nothing(tmp_path):
    kinds = [f"kind-{number}" for number in range(400)]
    living = Counting(tmp_path, ",".join(kinds * 2))
    assert all(values(tmp_path)["things_total", kind] == 2 for kind in kinds)
    living.kill()
    assert all(values(tmp_path)["things_total", kind] == 2 for kind in kinds)


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
    [*(("unlink", at) for at in range(1, 4)), *(("replace", at) for at in range(1, 4))],
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


@pytest.mark.parametrize("at", range(1, 8))
def test_a_merger_killed_while_it_removes_bit_by_bit_doubles_nothing(tmp_path, monkeypatch, at):
    monkeypatch.setattr(tallies, "REMOVED_AT_ONCE", 1)
    for kinds in ("a,b", "a"):
        Counting(tmp_path, kinds).kill()
    with monkeypatch.context() as patch:
        crash_in(patch, "replace", at)
        with suppress(KeyboardInterrupt):
            for _ in range(6):
                assert values(tmp_path)["things_total", "a"] == 2
    Counting(tmp_path, "a").kill()
    for _ in range(8):
        assert values(tmp_path)["things_total", "a"] == 3
    assert files(tmp_path) == ["counter_merged.db", "histogram_merged.db"]


FORKING = """
import os, sys
from pathlib import Path
from settings.metrics import count_in
assert count_in(Path(sys.argv[1]))
from prometheus_client import Counter, Histogram
things = [Counter(f"things{i}", "Things.", ["kind"]) for i in range(5)]
times = Histogram("times", "Times.", ["kind"])
for _ in range(int(sys.argv[2])):
    pid = os.fork()
    if pid == 0:
        for thing in things:
            thing.labels("a").inc()
        times.labels("a").observe(1)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def recycle(place, workers):
    """Let so many processes that one parent forks count and end."""
    command = [sys.executable, "-c", FORKING, str(place), str(workers)]
    subprocess.run(command, check=True, timeout=120)


def opened(monkeypatch):
    """Return the list to which is added the name of each file of counters that is read."""
    names, read = [], tallies.content
    monkeypatch.setattr(tallies, "content", lambda path: (names.append(path.name), read(path))[1])
    return names


def test_five_hundred_recycled_workers_are_read_once_and_leave_two_small_files(
    tmp_path, monkeypatch
):
    recycle(tmp_path, 500)
    assert len(files(tmp_path)) >= 1000
    read, sizes = opened(monkeypatch), []
    for count in (500, 1000):
        assert values(tmp_path)["things0_total", "a"] == count
        read.clear()
        assert values(tmp_path)["times_count", "a"] == count
        assert read == [], "a second scrape reads none of the dead"
        sizes.append((tmp_path / "histogram_merged.db").stat().st_size)
        if count == 500:
            recycle(tmp_path, 500)
    assert sizes[0] == sizes[1]
    while len(files(tmp_path)) > 2:
        left = len(files(tmp_path))
        values(tmp_path)
        assert len(files(tmp_path)) >= left - tallies.REMOVED_AT_ONCE, "a scrape has an end"
    assert values(tmp_path)["things4_total", "a"] == 1000


def test_pid_that_another_process_has_by_now_does_not_keep_a_dead_ones_file(tmp_path):
    process = Counting(tmp_path, "a")
    process.kill()
    for path in tmp_path.glob("*.db"):
        path.rename(str(path).replace(f"_{process.process.pid}-", f"_{os.getpid()}-"))
    tallies.merge_dead(tmp_path)
    assert files(tmp_path) == ["counter_merged.db", "histogram_merged.db"]


def test_process_that_nobody_here_knows_by_its_number_lives_while_it_holds_its_file(tmp_path):
    """Containers that share the directory do not see each other's processes."""
    living = Counting(tmp_path, "a")
    for path in tmp_path.glob("*.db"):
        path.rename(str(path).replace(f"_{living.process.pid}-", "_999999999-"))
    assert tallies.merge_dead(tmp_path) == 0
    assert values(tmp_path)["things_total", "a"] == 1
    living.kill()
    assert tallies.merge_dead(tmp_path) == 2


def test_file_that_is_another_users_secret_is_let_alone(tmp_path, monkeypatch):
    def refuse(self, *_args, **_kwargs):
        raise PermissionError

    Counting(tmp_path, "a").kill()
    monkeypatch.setattr(Path, "open", refuse)
    assert tallies.merge_dead(tmp_path) == 0
    assert values(tmp_path) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"\x01", b"\xff" * 64, b"\x40\0\0\0" + bytes(12), b"\x40\0\0\0" + bytes(60),
        b"\x40\0\0\0" + bytes(4) + b"\xf0\0\0\0" + b"[" * 52,
    ],
)  # fmt: skip
def test_file_torn_by_a_power_cut_is_left_out_and_told(tmp_path, content, caplog):
    Counting(tmp_path, "a").kill()
    (tmp_path / "counter_1-1.db").write_bytes(content)
    assert values(tmp_path)["things_total", "a"] == 1
    assert files(tmp_path) == ["counter_merged.db", "histogram_merged.db"]
    assert [record.getMessage() for record in caplog.records] == ["tally_corrupt"] * (
        len(content) > 4
    )


def test_full_disk_leaves_the_dead_as_they_lie_and_shows_them(tmp_path, monkeypatch, caplog):
    def full(self, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    Counting(tmp_path, "a").kill()
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert values(tmp_path)["things_total", "a"] == 1
    assert [record.getMessage() for record in caplog.records] == ["tallies_not_merged"]
    assert files(tmp_path) == before
    assert values(tmp_path)["things_total", "a"] == 1
    assert files(tmp_path) == ["counter_merged.db", "histogram_merged.db"]


def test_disk_that_is_full_while_merged_files_are_removed_has_them_removed_at_once(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tallies, "REMOVED_AT_ONCE", 1)
    for kinds in ("a,b", "a"):
        Counting(tmp_path, kinds).kill()
    values(tmp_path)

    def full(self, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert values(tmp_path)["things_total", "a"] == 2
    assert files(tmp_path) == ["counter_merged.db", "histogram_merged.db"]
    assert values(tmp_path)["things_total", "a"] == 2


def test_draft_of_a_process_killed_at_its_start_goes_once_it_is_old(tmp_path):
    young, old = (tmp_path / f"counter_{pid}-1.db.new" for pid in (1, 2))
    for draft in (young, old):
        draft.touch()
    os.utime(old, (1, 1))
    Counting(tmp_path, "a").kill()
    tallies.merge_dead(tmp_path)
    assert young.exists()
    assert not old.exists()


SUFFERING = """
import resource, shutil, sys
from pathlib import Path
import settings.metrics as counting
place = Path(sys.argv[1])
counting.LOOK_EVERY_S = 0
assert counting.count_in(place)
from prometheus_client import Counter
things = Counter("things", "Things.", ["kind"])
things.labels("a").inc()
if sys.argv[2] == "no room to begin":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    counting._owner.pid = 0
if sys.argv[2] == "no room to grow":
    resource.setrlimit(resource.RLIMIT_FSIZE, (counting.ROOM, resource.RLIM_INFINITY))
    for number in range(500):
        things.labels(str(number)).inc()
if sys.argv[2] == "no directory":
    shutil.rmtree(place)
things.labels("a").inc()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for _ in range(3):
    things.labels("a").inc()
print("suffered", flush=True)
"""


@pytest.mark.parametrize(
    ("trouble", "least"), [("no room to begin", 4), ("no room to grow", 4), ("no directory", 3)]
)
def test_counting_survives_and_is_seen_again(tmp_path, trouble, least):
    place = tmp_path / "counters"
    command = [sys.executable, "-c", SUFFERING, str(place), trouble]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "suffered\n"), done.stderr
    assert least <= values(place)["things_total", "a"] <= 5
    assert ("counters_unseen" in done.stderr) == (trouble != "no directory")
