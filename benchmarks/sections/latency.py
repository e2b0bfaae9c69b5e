"""Milliseconds from the commit of an entry to its posting: workers idle, and under load.

Posted is what another connection sees: the reader looks every few milliseconds, and the
clock is the kernel's monotonic one, which all processes of a machine share. So a figure holds
the drain's commit and up to one look; it never flatters.
"""

import os
import random
import tempfile
import time
from collections.abc import Mapping, Sequence

import redis
from django.conf import settings
from django.db import connection

from benchmarks import entries, machine, processes
from benchmarks.children.popper import ANSWERED, ASKED
from benchmarks.options import Options
from benchmarks.processes import Child
from benchmarks.report import Row, Table, at_least, at_most, percentile
from ledger.models import OutboxEntry
from ledger.rows import TRANSACTION

SERVERS = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "TEST_ADMIN_DATABASE_URL")
POP, IDLE, LOADED = "bare Redis pop in another process", "idle", "loaded"
EMBEDDED = "embedded mode (SQLite), idle"
PUBLISHERS = 4
LOOK_EVERY_S = 0.004
OVERLAP = 200
"""Ids come into sight out of order: each look goes so many back."""
TO_MS = 1_000
MOST_IDLE_MS, MOST_LOADED_MS, MOST_LOADED_P99_MS = 50.0, 100.0, 500.0
LEAST_PACE = 0.95


def measure(options: Options) -> Table:
    """Measure either mode idle, then production mode under load."""
    pops = _pops(options.samples)
    idle = _idle(options.samples, os.environ)
    loaded, pace, busy = _loaded(options)
    embedded = _embedded(options.samples)
    table = Table(
        "latency",
        f"milliseconds from commit to posted ({options.samples} single entries; then"
        f" {options.rate} commits a second for {options.load_s} s)",
        "ms",
        floor="a bare pop",
    )
    table.rows = [
        Row(POP, pops, pops, _p99(pops)),
        Row(f"production mode, {IDLE}", idle, pops, _p99(idle)),
        Row(f"production mode, {LOADED}", loaded, note=_p99(loaded)),
        Row(EMBEDDED, embedded, note=_p99(embedded)),
    ]
    medians = [row.median for row in table.rows]
    claim = f"the publishers kept at least {LEAST_PACE} of the pace"
    table.bars = [
        at_most("idle median at most 50 ms", medians[1], MOST_IDLE_MS),
        at_most("loaded median at most 100 ms", medians[2], MOST_LOADED_MS),
        at_most("loaded p99 at most 500 ms", percentile(loaded, 0.99), MOST_LOADED_P99_MS),
        at_least(claim, pace / options.rate, LEAST_PACE),
    ]
    table.notes = [
        f"loaded: {pace:.0f} commits a second by {PUBLISHERS} publishers,"
        f" {busy:.0%} of {machine.cores()} cores busy",
        f"seen by a reader that looks every {LOOK_EVERY_S * TO_MS:g} ms (idle: every 0.5 ms)",
    ]
    return table


def _p99(samples: Sequence[float]) -> str:
    return f"p99 {percentile(samples, 0.99):.1f}"


def _pops(count: int) -> list[float]:
    """Return the milliseconds from a push to when another process has popped."""
    child = Child("benchmarks.children.popper", count)
    child.ready()
    child.go()
    draw = random.Random(count)
    found = []
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        for _ in range(count):
            time.sleep(draw.uniform(0.005, 0.015))
            started = time.perf_counter()
            client.rpush(ASKED, "1")
            popped = client.blpop([ANSWERED])
            assert isinstance(popped, tuple), "a pop that waits is answered"
            found.append((float(popped[1]) - started) * TO_MS)
    child.result()
    return found


def _idle(count: int, env: Mapping[str, str]) -> list[float]:
    child = Child("benchmarks.children.waiter", count, env=env)
    child.ready()
    child.go()
    return [seconds * TO_MS for seconds in child.result()]


def _embedded(count: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="bench-") as var:
        return _idle(count, embedded_env(var))


def embedded_env(var: str) -> dict[str, str]:
    """Return what to add to the environment for the embedded mode, its database in ``var``."""
    return dict.fromkeys(SERVERS, "") | {"VAR_DIR": var}


def _loaded(options: Options) -> tuple[list[float], float, float]:
    """Return the milliseconds of every entry, the pace that was kept, how busy the machine was."""
    entries.make_accounts()
    share = options.rate / PUBLISHERS
    with processes.qcluster():
        _post_one()
        children = [
            Child("benchmarks.children.publisher", share, options.load_s, turn / PUBLISHERS)
            for turn in range(PUBLISHERS)
        ]
        for child in children:
            child.ready()
        meter = machine.Meter().start()
        for child in children:
            child.go()
        seen = _watch(children, int(share * options.load_s) * PUBLISHERS)
        meter.stop()
    commits = dict(pair for child in children for pair in child.result())
    found = [(seen.get(pk, seen[0]) - committed) * TO_MS for pk, committed in commits.items()]
    moments = sorted(commits.values())
    return found, (len(moments) - 1) / (moments[-1] - moments[0]), meter.busy


def _post_one() -> None:
    """Wait until a first entry is posted: the workers are up."""
    pk, _ = entries.publish_one()
    posted = OutboxEntry.objects.filter(pk=pk, status="posted")
    processes.wait_until(posted.exists, "the first entry is posted")


def _watch(children: Sequence[Child], count: int) -> dict[int, float]:
    """Return when each transaction was first seen; under 0 when all were known to be there."""
    seen: dict[int, float] = {}
    highest = first = _highest()
    started = time.perf_counter()
    while time.perf_counter() - started < processes.DEADLINE_S:
        rows = _transactions(max(first, highest - OVERLAP))
        now = time.perf_counter()
        for pk in rows:
            seen.setdefault(pk, now)
        highest = max([highest, *rows])
        if len(seen) >= count or (_ended(children) and _posted_since(first) >= count):
            break
        time.sleep(LOOK_EVERY_S)
    for pk in _transactions(first):
        seen.setdefault(pk, time.perf_counter())
    return seen | {0: time.perf_counter()}


def _ended(children: Sequence[Child]) -> bool:
    return all(child.process.poll() is not None for child in children)


def _highest() -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COALESCE(MAX(id), 0) FROM {TRANSACTION}")
        return int(cursor.fetchone()[0])


def _posted_since(first: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {TRANSACTION} WHERE id > %s", [first])
        return int(cursor.fetchone()[0])


def _transactions(after: int) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM {TRANSACTION} WHERE id > %s", [after])
        return [pk for (pk,) in cursor.fetchall()]
