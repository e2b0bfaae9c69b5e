"""Boards for the demo: plans of the sample, received again under fresh numbers."""

import csv
from collections.abc import Iterator, Mapping
from functools import cache
from io import BytesIO, StringIO
from itertools import groupby
from pathlib import Path

from splits.cutplans import Fault
from splits.imports import Import

SAMPLE = Path(__file__).resolve().parents[1] / "sample" / "cut_plans.csv"

Plan = list[dict[str, str]]


class RefusedBoardError(Exception):
    """A board of the demo was refused."""


def board_of(number: str) -> str:
    """Return the code of the board that order ``number`` of the demo splits."""
    return f"BOARD-{number}"


def deliver(orders: Mapping[str, str], *, finalize: bool = True) -> None:
    """Receive a board of its SKU for each order and import the order, in the order given.

    What is there already is left alone. Raises RefusedBoardError, ImportStoppedError.
    """
    faults: list[Fault] = []
    task = Import(finalize=finalize, on_fault=faults.append)
    task.run(BytesIO(_csv(orders).encode()))
    if faults:
        raise RefusedBoardError(f"{faults[0].order_number}: {faults[0].message}")


def skus() -> list[str]:
    """Return the SKUs of the sample's boards."""
    return list(_plans())


def _csv(orders: Mapping[str, str]) -> str:
    out = StringIO()
    writer: csv.DictWriter[str] | None = None
    for number, sku in orders.items():
        for row in _plan_for(number, sku):
            copy = {**row, "order_number": number, "board_code": board_of(number)}
            if writer is None:
                writer = csv.DictWriter(out, list(copy))
                writer.writeheader()
            writer.writerow(copy)
    return out.getvalue()


def _plan_for(number: str, sku: str) -> Plan:
    """Return always the same plan for a number: an order is known again by its content."""
    plans = _plans()[sku]
    return plans[sum(number.encode()) % len(plans)]


@cache
def _plans() -> dict[str, list[Plan]]:
    """Return the plans of the sample by the SKU of their board, the shortest first."""
    found: dict[str, list[Plan]] = {}
    for plan in sorted(_sample(), key=len):
        found.setdefault(plan[0]["board_sku"], []).append(plan)
    return found


def _sample() -> Iterator[Plan]:
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        for _number, rows in groupby(csv.DictReader(file), lambda row: row["order_number"]):
            yield list(rows)
