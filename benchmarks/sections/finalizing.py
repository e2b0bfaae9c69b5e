"""Split orders finalized a second, beside a plain loop and the same rows by the bare driver."""

import time
from collections.abc import Callable
from functools import partial

from django.conf import settings

from benchmarks import database, naive, orders, ordersfloor, processes
from benchmarks.options import Options
from benchmarks.processes import Child
from benchmarks.report import Row, Table, at_least, interleaved, ratio
from recovery.runner import run_job
from splits.models import SplitOrder

JOB = "finalizeRetryWorker"
DRIVER, NAIVE = "bare driver, 20 orders a transaction", "plain loop, a transaction a step"
ONE, TWO = "ours, one worker", "ours, two workers"
LEAST_TIMES = 3.0
NAIVE_SHARE = 2
"""The plain loop is given one order in so many: it is slow."""


def measure(options: Options) -> Table:
    """Measure all contenders in each round; no worker posts meanwhile."""
    contenders: dict[str, Callable[[], float]] = {
        DRIVER: partial(_alone, options.orders, _by_driver),
        NAIVE: partial(_alone, -(-options.orders // NAIVE_SHARE), naive.finalize_all),
        ONE: partial(_alone, options.orders, _guarded_runs),
        TWO: partial(_two, options.orders),
    }
    contenders[ONE]()  # code, caches and buffers are warm
    found = interleaved(contenders, options.rounds)
    table = Table(
        "finalize",
        f"orders finalized a second, six lines each ({options.rounds} rounds of {options.orders})",
        "/s",
        floor="the plain loop",
    )
    table.rows = [Row(name, samples, found[NAIVE]) for name, samples in found.items()]
    claim = f"one worker at least {LEAST_TIMES:g} times the plain loop"
    table.bars = [at_least(claim, ratio(found[ONE], found[NAIVE]), LEAST_TIMES)]
    table.notes = [f"one worker does {ratio(found[ONE], found[DRIVER]):.2f} of the bare driver"]
    return table


def _alone(count: int, finalize: Callable[[], object]) -> float:
    """Return orders a second of one finalizer in this process."""
    database.empty()
    orders.store(count)
    started = time.perf_counter()
    finalize()
    took_s = time.perf_counter() - started
    _require_finalized(count)
    return count / took_s


def _by_driver() -> None:
    ordersfloor.finalize_all(settings.DATABASE_URL)


def _guarded_runs() -> None:
    """Finalize by guarded runs: lock, lease, heartbeat, record."""
    while SplitOrder.objects.due().exists():
        run_job(JOB)


def _two(count: int) -> float:
    """Return orders a second of two finalizers at once, by the one that ends last."""
    children = [Child("benchmarks.children.finalizer") for _ in range(2)]
    database.empty()
    orders.store(count)
    for child in children:
        child.ready()
    results = processes.run_together(children)
    _require_finalized(count)
    return count / max(result["wall_s"] for result in results)


def _require_finalized(count: int) -> None:
    found = SplitOrder.objects.filter(status="finalized").count()
    if found != count:
        raise AssertionError(f"{found} of {count} orders are finalized")
