"""Entries posted a second: ours by one worker and by two, beside the driver and one task each."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import django

ROUNDS = 3
ENTRIES = int(os.environ.get("BENCH_ENTRIES", "10000"))
TASKS = int(os.environ.get("BENCH_TASKS", "600"))
TASK_DEADLINE_S = 300
SERVERS = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY")
JOB = "processLedgerOutbox"


def main() -> int:
    """Measure three rounds, each with every contender, and print medians and ratios."""
    with tempfile.TemporaryDirectory() as var:
        os.environ |= {"PROMETHEUS_MULTIPROC_DIR": var, "DJANGO_SETTINGS_MODULE": "settings.base"}
        return measure(var)


def measure(var: str) -> int:
    """Measure everything; ``var`` is an empty directory for the embedded database."""
    django.setup()
    from django.conf import settings

    if not settings.DATABASE_URL.startswith("mysql:") or not settings.REDIS_URL:
        sys.stderr.write("run `make bench`: it starts MariaDB and Redis for this\n")
        return 2
    prepare()
    contenders: dict[str, Callable[[], float]] = {
        "bare driver, batches of 500": bare_driver,
        "one worker": one_worker,
        "two workers": two_workers,
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, measure in contenders.items():
            rates[name].append(measure())
    rates["one django-q2 task an entry"] = [task_each()]
    report(rates)
    report_latencies(var)
    return 0


def report_latencies(var: str) -> None:
    """Print how long single entries wait where the workers idle, in either mode."""
    from recovery import pauses

    pauses.resume(JOB, actor="cli:benchmark")
    embedded = {key: value for key, value in os.environ.items() if key not in SERVERS}
    say("seconds from the commit of one entry to its posting, workers idle")
    for name, environ in (
        ("MariaDB and Redis", dict(os.environ)),
        ("embedded, SQLite", embedded | {"VAR_DIR": var}),
    ):
        found = json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.latency"],
                env=environ, check=True, stdout=subprocess.PIPE,
            ).stdout
        )  # fmt: skip
        middle, worst = statistics.median(found), max(found)
        say(f"  {name:<30} median {middle:6.3f}   worst of {len(found)}: {worst:6.3f}")


def say(text: str) -> None:
    """Print one line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def prepare() -> None:
    """Make the tables and every account, so that no contender pays for them."""
    from django.core.management import call_command

    from recovery import pauses, schedules

    call_command("migrate", verbosity=0)
    schedules.ensure_rows()
    from benchmarks.entries import publish_many

    publish_many(ENTRIES)
    _guarded_runs()
    # Later entries are posted by whom is measured, not by the tick of the queue's cluster.
    pauses.pause(JOB, actor="cli:benchmark")


def _guarded_runs() -> None:
    from recovery.runner import run_job

    while run_job(JOB).again:
        pass


def bare_driver() -> float:
    """Return entries a second of the bare driver."""
    from django.conf import settings

    from benchmarks import floor
    from benchmarks.entries import publish_many

    publish_many(ENTRIES)
    return _rate(ENTRIES, lambda: floor.drain(settings.DATABASE_URL))


def one_worker() -> float:
    """Return entries a second of guarded runs: lock, lease, heartbeat, record."""
    from benchmarks.entries import publish_many
    from recovery import pauses

    publish_many(ENTRIES)
    pauses.resume(JOB, actor="cli:benchmark")
    rate = _rate(ENTRIES, _guarded_runs)
    pauses.pause(JOB, actor="cli:benchmark")
    return rate


def two_workers() -> float:
    """Return entries a second of two drains at once, without the lock that keeps them apart."""
    from benchmarks.entries import publish_many

    publish_many(ENTRIES)
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.drain"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()  # it is set up and waits
    return _rate(ENTRIES, lambda: [worker.communicate(b"go\n") for worker in workers])


def task_each() -> float:
    """Return entries a second where each has a django-q2 task, cluster running, all workers."""
    from django_q.tasks import async_task

    from benchmarks.cluster import cluster
    from benchmarks.entries import publish_many
    from ledger.models import OutboxEntry

    with cluster():
        probe = publish_many(1)
        async_task("benchmarks.tasks.post_one", probe[0])
        _wait_until(lambda: not OutboxEntry.objects.pending().exists())
        ids = publish_many(TASKS)

        def run() -> None:
            for pk in ids:
                async_task("benchmarks.tasks.post_one", pk)
            _wait_until(lambda: not OutboxEntry.objects.pending().exists())

        return _rate(TASKS, run)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TASK_DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the queue did not finish in time")
        time.sleep(0.01)


def _rate(entries: int, action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return entries / (time.perf_counter() - started)


def report(rates: dict[str, list[float]]) -> None:
    """Print one line a contender: median, spread, ratio to the bare driver."""
    floor = statistics.median(next(iter(rates.values())))
    say(f"entries posted a second, two postings each ({ENTRIES} a round, {ROUNDS} rounds)")
    for name, found in rates.items():
        middle = statistics.median(found)
        spread = f"{min(found):,.0f} to {max(found):,.0f}" if len(found) > 1 else ""
        say(f"  {name:<30} {middle:>8,.0f}/s   {middle / floor:5.2f} of the driver   {spread}")


if __name__ == "__main__":
    sys.exit(main())
