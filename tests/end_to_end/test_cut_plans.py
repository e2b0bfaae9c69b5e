"""All published cut plans, from the CSV to the ledger, by two clusters at once."""

import csv
import signal
from collections import Counter, defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger.models import Account, OutboxEntry, Posting, Transaction
from recovery.models import JobRun, RunStatus
from splits.models import FinalizeStep, Lot, LotStatus, OrderStatus, SplitOrder, StepName
from tests.processes import Manage
from tests.splits.state import contents

PLANS = Path(__file__).parent.parent / "data" / "cut_plans.csv"
ORDERS = 1_557
DEADLINE_S = 900
PATIENT = {"JOB_LOCK_TTL_SEC": "60"}
"""Environment of clusters of which none is killed: a run that is slow is not dead."""


@pytest.mark.timeout(1_200)
def test_two_clusters_take_every_plan_to_the_ledger_once(
    manage: Manage, eventually: Callable[..., Any]
) -> None:
    with PLANS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = manage("import_splits", str(PLANS), "--finalize", "--json").json()
    assert first == {"imported": ORDERS, "skipped": 0, "errors": []}

    clusters = [manage.start("qcluster", env=PATIENT) for _ in range(2)]
    eventually(_all_done, deadline_s=DEADLINE_S)
    for cluster in clusters:
        cluster.signal(signal.SIGTERM)
    ended = [cluster.finish() for cluster in clusters]

    assert [cluster.returncode for cluster in ended] == [0, 0], ended
    _each_order_is_finalized_once()
    _ledger_is_exact(rows)
    _child_lots_equal_lines(rows)
    assert not JobRun.objects.exclude(status=RunStatus.OK).exists()
    assert manage("reconcile", "--json").json()["ok"]
    _importing_again_changes_nothing(manage)


def _all_done() -> bool:
    finalized = SplitOrder.objects.filter(status=OrderStatus.FINALIZED).count()
    return finalized == ORDERS and not OutboxEntry.objects.pending().exists()


def _each_order_is_finalized_once() -> None:
    orders = list(SplitOrder.objects.values_list("number", "finalize_attempts", "finalize_epoch"))
    assert len(orders) == ORDERS
    assert {(attempts, epoch) for _, attempts, epoch in orders} == {(1, 1)}
    keys = Counter(Transaction.objects.values_list("event_key", flat=True))
    assert all(keys[f"split-order:{number}:finalized"] == 1 for number, _, _ in orders)
    assert len(keys) == 2 * ORDERS  # and each board was received once
    assert FinalizeStep.objects.count() == ORDERS * len(StepName)


def _ledger_is_exact(rows: list[dict[str, str]]) -> None:
    sums: dict[tuple[int, str], Decimal] = defaultdict(Decimal)
    balances: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    postings = Posting.objects.values_list(
        "transaction_id", "account__code", "account__unit", "quantity"
    )
    for transaction, code, unit, quantity in postings.iterator():
        sums[transaction, unit] += quantity
        balances[code, unit] += quantity
    assert len(sums) == 2 * ORDERS
    assert not any(sums.values())
    stored = {(it.code, it.unit): it.balance for it in Account.objects.all()}
    assert stored == {key: balances[key] for key in stored}
    assert not balances.keys() - stored.keys()
    assert {key: value for key, value in stored.items() if value} == _expected_stock(rows)


def _expected_stock(rows: list[dict[str, str]]) -> dict[tuple[str, str], Decimal]:
    stock: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for row in rows:
        quantity = Decimal(row["quantity"])
        stock[f"stock:{row['sku']}", row["unit"]] += quantity
        stock["external:receipts", row["unit"]] -= quantity
    return dict(stock)


def _child_lots_equal_lines(rows: list[dict[str, str]]) -> None:
    expected = {
        f"{row['board_code']}-{int(row['line']):03d}": (row["sku"], Decimal(row["quantity"]))
        for row in rows
    }
    children = Lot.objects.exclude(parent_order=None)
    assert {lot.code: (lot.sku, lot.quantity) for lot in children} == expected
    assert set(children.values_list("status", flat=True)) == {LotStatus.AVAILABLE}
    boards = Lot.objects.filter(parent_order=None)
    assert boards.count() == ORDERS
    assert set(boards.values_list("status", flat=True)) == {LotStatus.CONSUMED}


def _importing_again_changes_nothing(manage: Manage) -> None:
    before = contents()
    again = manage("import_splits", str(PLANS), "--finalize", "--json").json()
    assert again == {"imported": 0, "skipped": ORDERS, "errors": []}
    assert contents() == before
