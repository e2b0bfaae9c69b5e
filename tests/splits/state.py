"""The whole final state of an order, asserted at once."""

from typing import Any

from ledger.models import Account, OutboxEntry, Posting, Transaction
from recovery.models import AuditRecord
from splits.models import (
    FinalizeStep,
    Lot,
    LotStatus,
    OrderStatus,
    SplitLine,
    SplitOrder,
    StepName,
)

TABLES = (
    Lot,
    SplitOrder,
    SplitLine,
    FinalizeStep,
    OutboxEntry,
    Account,
    Transaction,
    Posting,
)


def contents() -> dict[str, list[Any]]:
    """Return all rows of orders, lots, ledger and audit, to be compared with later ones.

    That an operator asked for something, by a plan, is not among them: what came of it is.
    """
    found = {
        table.__name__: list(table._default_manager.order_by("pk").values()) for table in TABLES
    }
    records = AuditRecord.objects.exclude(target_type="plan").order_by("pk")
    return found | {AuditRecord.__name__: list(records.values())}


def assert_finalized_once(order: SplitOrder) -> None:
    """Assert that every effect of finalizing ``order`` is there exactly once."""
    order.refresh_from_db()
    assert order.status == OrderStatus.FINALIZED
    assert not order.finalize_in_progress
    assert order.finalized_at is not None
    assert (order.last_finalize_error, order.last_finalize_error_code) == ("", "")
    assert [step.name for step in order.steps.all()] == list(StepName)
    source = Lot.objects.get(pk=order.source_lot_id)
    assert source.status == LotStatus.CONSUMED
    outputs = order.outputs.order_by("code")
    assert [(lot.code, lot.sku, str(lot.quantity), lot.status) for lot in outputs] == [
        (f"{source.code}-001", "OAK-S", "4.500000", "available"),
        (f"{source.code}-002", "OAK-S", "4.500000", "available"),
        (f"{source.code}-003", "OAK-OFF", "1.000000", "available"),
    ]
    assert {(lot.root_code, lot.unit) for lot in outputs} == {(source.root_code, "m2")}
    (entry,) = OutboxEntry.objects.filter(event_key__startswith=f"split-order:{order.number}:")
    assert entry.event_key == order.event_key
    assert entry.aggregate == f"lot:{source.root_code}"
    assert entry.payload["postings"] == [
        {"account": "stock:OAK", "quantity": "-10", "unit": "m2"},
        {"account": "stock:OAK-S", "quantity": "4.5", "unit": "m2"},
        {"account": "stock:OAK-S", "quantity": "4.5", "unit": "m2"},
        {"account": "stock:OAK-OFF", "quantity": "1", "unit": "m2"},
    ]


def assert_untouched(order: SplitOrder) -> None:
    """Assert that no stock has moved for ``order``."""
    assert Lot.objects.get(pk=order.source_lot_id).status == LotStatus.AVAILABLE
    assert not order.outputs.exists()
    assert not OutboxEntry.objects.filter(event_key=order.event_key).exists()
