"""Work under all faults for a long time, then the final state: ``make soak``.

``python -m tests.faults.soak [--minutes M] [--orders N] [--clusters N] [--seed S]`` prints the
figures and what is wrong, and exits 1 where something is.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import django
from django.conf import settings

from tests.faults.chaos import ALL, Chaos, Fault
from tests.faults.checker import connect, violations
from tests.faults.installation import Importer, installed, plan_rows
from tests.splits.endpoint import Endpoint

ORDERS_A_PART = 40
ENTRIES_A_BATCH = 20
"""So few that one drain calls the next."""
SETTLES_WITHIN_S = 600


@dataclass(frozen=True)
class Report:
    """What a soak did and found."""

    seed: int
    orders: int
    wall_s: float
    settled_s: float
    injected: Counter[str]
    imports: int
    gave_up: int
    recoveries: int
    deaths: int
    charged: int
    """Entries with an attempt counted: after two deaths they are worked alone, on the record."""
    shared: int
    """Runs of further drains that posted."""
    problems: list[str]

    def text(self) -> str:
        """Return the report for people."""
        faults = [f"  {count:5} x {name}" for name, count in self.injected.most_common()]
        return "\n".join(
            [
                f"seed {self.seed}: {self.injected.total()} faults on {self.orders} orders"
                f" in {self.wall_s:.0f} s, settled {self.settled_s:.0f} s after the last one",
                *faults,
                f"  {self.imports} imports begun, {self.deaths} runs died,"
                f" {self.shared} runs of further drains posted,"
                f" {self.recoveries} finalizations recovered,"
                f" {self.charged} entries worked alone or charged,"
                f" {self.gave_up} clusters started again",
                *(f"WRONG: {problem}" for problem in self.problems),
                "everything agrees" if not self.problems else "",
            ]
        ).rstrip()


def soak(
    *,
    seed: int,
    orders: int,
    seconds: float,
    clusters: int,
    drains: int = 2,
    faults: Sequence[Fault] = ALL,
    least: int = 0,
    **environment: str,
) -> Report:
    """Import and finalize ``orders`` while ``faults`` strike; then settle and look."""
    rows = plan_rows(orders)
    begun = time.monotonic()
    with installed(
        None,
        JOB_OUTBOX_DRAINS=str(drains),
        JOB_OUTBOX_BATCH_SIZE=str(ENTRIES_A_BATCH),
        QCLUSTER_WORKERS=str(settings.Q_CLUSTER["workers"]),  # as those who watch it expect
        **environment,
    ) as installation:
        installation.start_clusters(clusters)
        importer = Importer(installation, _parts(rows))
        chaos = Chaos(installation, faults, seed, importer)
        importer.start()
        chaos.rage(seconds, least=least)
        calm = time.monotonic()
        importer.wait(SETTLES_WITHIN_S)
        installation.settle(orders=orders, deadline_s=SETTLES_WITHIN_S)
        done = time.monotonic()
        with closing(connect(installation.database.url)) as link:
            problems = violations(link, rows)
        problems += _unlike_what_was_told(installation.endpoint, rows)
        ask = installation.count
        return Report(
            seed=seed,
            orders=orders,
            wall_s=done - begun,
            settled_s=done - calm,
            injected=chaos.injected,
            imports=importer.tries,
            gave_up=installation.gave_up,
            recoveries=ask("SELECT SUM(recovery_count) FROM splits_splitorder"),
            deaths=ask("SELECT COUNT(*) FROM recovery_jobrun WHERE status = 'died'"),
            charged=installation.count(
                "SELECT COUNT(*) FROM ledger_outboxentry WHERE attempts > 0"
            ),
            shared=ask(
                "SELECT COUNT(*) FROM recovery_jobrun"
                " WHERE job_id LIKE 'processLedgerOutbox:%' AND counts LIKE '%posted%'"
            ),
            problems=problems,
        )


def _parts(rows: Sequence[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Return ``rows`` in parts of whole orders."""
    orders: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        orders.setdefault(row["order_number"], []).append(row)
    found = list(orders.values())
    starts = range(0, len(found), ORDERS_A_PART)
    return [
        [row for order in found[start : start + ORDERS_A_PART] for row in order] for start in starts
    ]


def _unlike_what_was_told(endpoint: Endpoint, rows: Sequence[dict[str, str]]) -> list[str]:
    """Return where the endpoint was not told of each order, or of one in two ways."""
    numbers = {row["order_number"] for row in rows}
    bodies = Counter(endpoint.bodies)
    told = Counter(_number(body) for body in bodies)
    found = [f"the endpoint was not told of {number}" for number in numbers - told.keys()]
    return found + [f"{number} was told in two ways" for number in told if told[number] > 1]


def _number(body: bytes) -> str:
    number: str = json.loads(body)["order_number"]
    return number


def main(arguments: Sequence[str]) -> int:
    """Soak as asked; 0 where nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--orders", type=int, default=3_000)
    parser.add_argument("--clusters", type=int, default=2)
    parser.add_argument("--drains", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args(arguments)
    print(f"seed {chosen.seed}", flush=True)  # noqa: T201 - so that it is known if we are killed
    report = soak(
        seed=chosen.seed,
        orders=chosen.orders,
        seconds=chosen.minutes * 60,
        clusters=chosen.clusters,
        drains=chosen.drains,
    )
    print(report.text())  # noqa: T201
    return 1 if report.problems else 0


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings.base")
    django.setup()
    sys.exit(main(sys.argv[1:]))
