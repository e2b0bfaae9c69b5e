"""Rows of cut plans imported a second, beside the same rows written by the bare driver."""

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.db import connection

from benchmarks import database, ordersfloor
from benchmarks.options import Options
from benchmarks.report import Row, Table, interleaved
from splits.cutplans import CutPlan, PlannedOrder
from splits.models import SplitLine

CUT_PLANS = Path(settings.BASE_DIR) / "tests" / "data" / "cut_plans.csv"
DRIVER, OURS = "bare driver, rows only", "import_splits"


def measure(options: Options) -> Table:
    """Import the first orders of the real cut plans into empty tables, by either."""
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        rows = _copy_orders(options.orders, file.name)
        plan = parsed(Path(file.name))
        found = interleaved(
            {
                DRIVER: lambda: _rate(rows, lambda: _by_driver(plan)),
                OURS: lambda: _rate(rows, lambda: _by_command(file.name)),
            },
            options.rounds,
        )
    title = (
        f"rows of cut plans imported a second, a transaction an order"
        f" ({options.rounds} rounds of {len(plan)} orders, {rows:,} rows)"
    )
    table = Table("import", title, "/s", floor="the bare driver")
    table.rows = [Row(name, samples, found[DRIVER]) for name, samples in found.items()]
    table.notes = ["the driver is given parsed orders; it looks nothing up and checks nothing"]
    return table


def _copy_orders(count: int, path: str) -> int:
    """Copy the header and the rows of the first ``count`` orders; return how many rows."""
    header, *rows = CUT_PLANS.read_text().splitlines(keepends=True)
    numbers = list(dict.fromkeys(row.partition(",")[0] for row in rows))[:count]
    wanted = set(numbers)
    kept = [row for row in rows if row.partition(",")[0] in wanted]
    Path(path).write_text(header + "".join(kept))
    return len(kept)


def parsed(path: Path) -> list[PlannedOrder]:
    """Return the orders of a cut plan without fault."""
    with path.open("rb") as file:
        items = list(CutPlan(file, vendor=connection.vendor))
    orders = [item for item in items if isinstance(item, PlannedOrder)]
    assert len(orders) == len(items), "the cut plans are sound"
    return orders


def _by_driver(plan: list[PlannedOrder]) -> None:
    ordersfloor.import_all(settings.DATABASE_URL, plan)


def _by_command(path: str) -> None:
    call_command("import_splits", path, "--json", stdout=io.StringIO(), stderr=io.StringIO())


def _rate(rows: int, action: Callable[[], object]) -> float:
    database.empty()
    started = time.perf_counter()
    action()
    took_s = time.perf_counter() - started
    stored = SplitLine.objects.count()
    assert stored == rows, f"{stored} of {rows} rows are imported"
    return rows / took_s
