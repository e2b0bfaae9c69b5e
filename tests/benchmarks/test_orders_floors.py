"""The plain loop and the bare driver end in the rows that the product ends in."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from benchmarks import naive, orders, ordersfloor
from benchmarks.sections.importing import CUT_PLANS, parsed
from ledger.models import OutboxEntry
from ledger.outbox import content_hash
from recovery.runner import run_job
from splits.models import FinalizeStep, Lot, SplitLine, SplitOrder
from tests.processes import database_url

COUNT = 7


def stored(mark: str) -> dict[str, Any]:
    """Return all rows that bear ``mark``, which is left out of them, and no times."""
    found = SplitOrder.objects.filter(number__contains=mark).order_by("number")
    entries = OutboxEntry.objects.filter(event_key__contains=mark).order_by("event_key")
    for entry in entries:
        digest = content_hash(entry.event_type, entry.aggregate, entry.payload)
        assert entry.content_hash == digest, entry
    rows = {
        "lots": Lot.objects.filter(code__contains=mark)
        .order_by("code")
        .values_list(
            "code", "sku", "quantity", "unit", "status", "root_code", "parent_order__number"
        ),
        "orders": found.values_list(
            "number",
            "source_lot__code",
            "live_lot__code",
            "status",
            "finalize_in_progress",
            "finalize_epoch",
            "finalize_owner",
            "finalize_attempts",
            "next_finalize_at",
            "last_finalize_error",
            "last_finalize_error_code",
            "recovery_count",
            "recovered_at",
        ),
        "times": [
            (
                it.finalize_started_at is None,
                it.finalize_progress_at is None,
                it.finalized_at is None,
            )
            for it in found
        ],
        "lines": SplitLine.objects.filter(order__in=found)
        .order_by("order__number", "line")
        .values_list("order__number", "line", "kind", "sku", "quantity"),
        "steps": FinalizeStep.objects.filter(order__in=found)
        .order_by("order__number", "id")
        .values_list("order__number", "name", "epoch"),
        "entries": entries.values_list(
            "event_key", "event_type", "aggregate", "payload", "status", "attempts", "traceparent"
        ),
    }
    text = json.dumps({name: list(found) for name, found in rows.items()}, default=str)
    same: dict[str, Any] = json.loads(text.replace(mark, "MARK"))
    return same


def finalized_by(mark: str, finalize: Callable[[], object]) -> dict[str, Any]:
    """Return what is stored once ``finalize`` has finalized orders that are all alike."""
    orders.store(COUNT, label=mark)
    finalize()
    return stored(f"-{mark}-")


def by_product() -> None:
    """Finalize what is due by guarded runs."""
    while SplitOrder.objects.due().exists():
        assert run_job("finalizeRetryWorker").status == "ok"


@pytest.mark.django_db(transaction=True)
def test_plain_loop_ends_in_the_rows_of_the_product():
    expected = finalized_by("A", by_product)
    assert {row[3] for row in expected["orders"]} == {"finalized"}
    assert len(expected["steps"]) == 5 * COUNT
    assert finalized_by("B", naive.finalize_all) == expected


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_bare_driver_ends_in_the_rows_of_the_product():
    expected = finalized_by("A", by_product)
    assert finalized_by("B", lambda: ordersfloor.finalize_all(database_url())) == expected


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_bare_driver_imports_what_the_product_imports(tmp_path: Path):
    header, *rows = CUT_PLANS.read_text().splitlines(keepends=True)
    some = [row for row in rows[:40] if row.split(",")[0] != rows[40].split(",")[0]]
    paths = {mark: tmp_path / f"{mark}.csv" for mark in ("MB_A", "MB_B")}
    for mark, path in paths.items():
        path.write_text(header + "".join(some).replace("MB_Class", mark))
    call_command("import_splits", str(paths["MB_A"]), "--json", stdout=io.StringIO())
    ordersfloor.import_all(database_url(), parsed(paths["MB_B"]))
    expected = stored("MB_A")
    assert len(expected["lines"]) == len(some)
    assert stored("MB_B") == expected
