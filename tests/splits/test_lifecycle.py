"""Create, submit, retry, release, cancel, reverse: who may, once, and what is left."""

from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError

from ledger.models import EntryStatus, OutboxEntry
from recovery.models import AuditRecord
from splits import lifecycle
from splits.errors import (
    InProgressError,
    LotBusyError,
    LotNotAvailableError,
    NotInLedgerError,
    NumberTakenError,
    OutputsTouchedError,
    StockMovedError,
    UnknownOrderError,
    WrongStatusError,
)
from splits.finalize import Ending, finalize
from splits.lifecycle import NewLine
from splits.models import LineKind, Lot, LotStatus, OrderStatus, SplitOrder
from tests.factories import AUTHOR, LINES, LotFactory, SplitOrderFactory, hang

pytestmark = pytest.mark.django_db


@pytest.fixture
def woken(monkeypatch):
    """The jobs that were woken."""
    names: list[str] = []
    monkeypatch.setattr("recovery.wakeups.wake", names.append)
    return names


def only_record():
    record = AuditRecord.objects.get()
    return record.action, record.actor, record.reason, record.target_id


def test_new_order_is_a_draft_that_holds_its_lot():
    lot = LotFactory()
    order = lifecycle.create_order(number="SO-1", source_lot=lot, lines=LINES)
    assert (order.status, order.live_lot, order.next_finalize_at) == ("draft", lot, None)
    assert [(it.line, it.kind, it.sku, it.quantity) for it in order.lines.all()] == [
        (it.line, it.kind, it.sku, it.quantity) for it in LINES
    ]


def test_lot_has_one_live_order():
    order = SplitOrderFactory()
    with pytest.raises(LotBusyError, match=order.number):
        SplitOrderFactory(source_lot=order.source_lot)


def test_number_is_taken_once():
    SplitOrderFactory(number="SO-1")
    with pytest.raises(NumberTakenError, match="SO-1"):
        SplitOrderFactory(number="SO-1")
    assert SplitOrderFactory(number="so-1").number == "so-1"


def test_number_taken_since_it_was_looked_up_is_said_so():
    SplitOrderFactory(number="SO-1")
    with pytest.raises(NumberTakenError, match="SO-1"):
        lifecycle._insert("SO-1", LotFactory())


@pytest.mark.parametrize(("cut", "taken"), [("post_ledger", False), ("notify", True)])
def test_child_lot_takes_no_order_before_it_is_published(settings, cut, taken):
    """Its own entry would stand before the one that brings its stock, and hold that back."""
    order = SplitOrderFactory()
    settings.RECOVERY_FAULTPOINTS = f"finalize.before_step.{cut}=raise"
    finalize(order.pk, author=AUTHOR)
    settings.RECOVERY_FAULTPOINTS = ""
    child = order.outputs.first()
    if taken:
        assert SplitOrderFactory(source_lot=child).live_lot == child
        return
    with pytest.raises(LotNotAvailableError, match=f"{order.number}, not in the ledger yet"):
        SplitOrderFactory(source_lot=child)


def test_consumed_lot_takes_no_order():
    order = SplitOrderFactory(at=OrderStatus.FINALIZED)
    with pytest.raises(LotNotAvailableError, match="consumed"):
        SplitOrderFactory(source_lot=order.source_lot)


@pytest.mark.parametrize("number", ["", " SO-1", "SO-1 ", "SO\n1"])
def test_number_must_be_a_key(number):
    with pytest.raises(ValidationError):
        SplitOrderFactory(number=number)


def test_sku_must_be_a_key():
    with pytest.raises(ValidationError):
        SplitOrderFactory(lines=(NewLine(1, LineKind.PIECE, "OAK ", Decimal(10)),))


def test_draft_is_submitted_once_and_wakes_the_finalizer(woken, django_capture_on_commit_callbacks):
    order = SplitOrderFactory(at=OrderStatus.DRAFT)
    with django_capture_on_commit_callbacks(execute=True):
        assert lifecycle.submit(order.pk)
        assert not lifecycle.submit(order.pk)
    assert woken == ["finalizeRetryWorker"]
    assert SplitOrder.objects.due().get() == order


def test_order_submitted_not_due_wakes_nobody_and_waits_to_be_started(
    woken, django_capture_on_commit_callbacks
):
    order = SplitOrderFactory(at=OrderStatus.DRAFT)
    with django_capture_on_commit_callbacks(execute=True):
        assert lifecycle.submit(order.pk, due=False)
    order.refresh_from_db()
    assert (order.status, order.next_finalize_at, woken) == (OrderStatus.READY, None, [])
    assert finalize(order.pk, author=AUTHOR) is None
    assert finalize(order.pk, author=AUTHOR, now=True).ending is Ending.FINALIZED


def test_order_retried_not_due_wakes_nobody(woken, django_capture_on_commit_callbacks):
    order = SplitOrderFactory(at=OrderStatus.FAILED)
    woken.clear()
    with django_capture_on_commit_callbacks(execute=True):
        assert lifecycle.retry(order.pk, author=AUTHOR, due=False)
    order.refresh_from_db()
    assert (order.status, order.next_finalize_at, woken) == (OrderStatus.READY, None, [])
    assert order.finalize_attempts == 0


@pytest.mark.parametrize("at", [OrderStatus.FINALIZED, OrderStatus.FAILED, OrderStatus.CANCELLED])
def test_only_drafts_are_submitted(at):
    order = SplitOrderFactory(at=at)
    with pytest.raises(WrongStatusError, match=at):
        lifecycle.submit(order.pk)


def test_unknown_order_is_said_so():
    with pytest.raises(UnknownOrderError):
        lifecycle.submit(4711)


def test_failed_order_gets_fresh_attempts_once(woken, django_capture_on_commit_callbacks):
    order = SplitOrderFactory(at=OrderStatus.FAILED)
    with django_capture_on_commit_callbacks(execute=True):
        assert lifecycle.retry(order.pk, author=AUTHOR)
        assert not lifecycle.retry(order.pk, author=AUTHOR)
    order.refresh_from_db()
    assert (order.status, order.finalize_attempts) == (OrderStatus.READY, 0)
    assert only_record() == ("split-order-retried", "cli:tester", "because", order.number)
    assert woken == ["finalizeRetryWorker"]
    assert finalize(order.pk, author=AUTHOR).ending is Ending.FINALIZED


@pytest.mark.parametrize("at", [OrderStatus.DRAFT, OrderStatus.QUARANTINED, OrderStatus.FINALIZED])
def test_only_failed_orders_are_retried(at):
    with pytest.raises(WrongStatusError):
        lifecycle.retry(SplitOrderFactory(at=at).pk, author=AUTHOR)


def test_quarantined_order_is_released_with_fresh_counters(
    woken, django_capture_on_commit_callbacks
):
    order = SplitOrderFactory(at=OrderStatus.QUARANTINED)
    assert (order.recovery_count, len(order.recovered_at)) == (1, 1)
    with django_capture_on_commit_callbacks(execute=True):
        assert lifecycle.release(order.pk, author=AUTHOR)
        assert not lifecycle.release(order.pk, author=AUTHOR)
    order.refresh_from_db()
    assert (order.status, order.finalize_attempts) == (OrderStatus.READY, 0)
    assert (order.recovery_count, order.recovered_at) == (0, [])
    assert only_record() == ("split-order-released", "cli:tester", "because", order.number)
    assert woken == ["finalizeRetryWorker"]
    assert SplitOrder.objects.due().get() == order


def test_only_quarantined_orders_are_released():
    with pytest.raises(WrongStatusError):
        lifecycle.release(SplitOrderFactory(at=OrderStatus.FAILED).pk, author=AUTHOR)


@pytest.mark.parametrize(
    "at", [OrderStatus.DRAFT, OrderStatus.READY, OrderStatus.FAILED, OrderStatus.QUARANTINED]
)
def test_order_that_moved_nothing_is_cancelled_and_frees_its_lot(at):
    order = SplitOrderFactory(at=at)
    assert lifecycle.cancel(order.pk, author=AUTHOR)
    assert not lifecycle.cancel(order.pk, author=AUTHOR)
    order.refresh_from_db()
    assert (order.status, order.live_lot, order.next_finalize_at) == ("cancelled", None, None)
    assert only_record() == ("split-order-cancelled", "cli:tester", "because", order.number)
    assert SplitOrderFactory(source_lot=order.source_lot).status == OrderStatus.READY


@pytest.mark.parametrize(
    ("faulty_step", "possible"), [("consume_source", True), ("create_outputs", False)]
)
def test_cancelling_is_possible_until_the_source_is_consumed(settings, faulty_step, possible):
    settings.RECOVERY_FAULTPOINTS = f"finalize.in_step.{faulty_step}=raise"
    order = SplitOrderFactory()
    finalize(order.pk, author=AUTHOR)
    if possible:
        assert lifecycle.cancel(order.pk, author=AUTHOR)
    else:
        with pytest.raises(StockMovedError):
            lifecycle.cancel(order.pk, author=AUTHOR)


def test_order_in_progress_is_not_cancelled():
    with pytest.raises(InProgressError):
        lifecycle.cancel(hang(SplitOrderFactory()).pk, author=AUTHOR)


@pytest.mark.parametrize("at", [OrderStatus.FINALIZED, OrderStatus.REVERSED])
def test_finalized_order_is_not_cancelled(at):
    with pytest.raises(WrongStatusError):
        lifecycle.cancel(SplitOrderFactory(at=at).pk, author=AUTHOR)


def test_finalized_order_is_reversed_once_and_whole():
    order = SplitOrderFactory(at=OrderStatus.FINALIZED)
    assert lifecycle.reverse(order.pk, author=AUTHOR)
    assert not lifecycle.reverse(order.pk, author=AUTHOR)
    order.refresh_from_db()
    assert (order.status, order.live_lot) == (OrderStatus.REVERSED, None)
    assert {lot.status for lot in order.outputs.all()} == {LotStatus.CANCELLED}
    assert Lot.objects.get(pk=order.source_lot_id).status == LotStatus.AVAILABLE
    there, back = OutboxEntry.objects.order_by("id")
    assert back.event_key == f"split-order:{order.number}:reversed"
    assert back.aggregate == there.aggregate
    negated = [(it["account"], it["quantity"]) for it in back.payload["postings"]]
    assert negated == [
        ("stock:OAK", "10"),
        ("stock:OAK-S", "-4.5"),
        ("stock:OAK-S", "-4.5"),
        ("stock:OAK-OFF", "-1"),
    ]
    assert only_record() == ("split-order-reversed", "cli:tester", "because", order.number)


def test_order_whose_child_is_held_is_not_reversed():
    order = SplitOrderFactory(at=OrderStatus.FINALIZED)
    child = order.outputs.get(code__endswith="-002")
    SplitOrderFactory(source_lot=child, lines=(NewLine(1, LineKind.PIECE, "X", Decimal("4.5")),))
    with pytest.raises(OutputsTouchedError, match=child.code):
        lifecycle.reverse(order.pk, author=AUTHOR)
    order.refresh_from_db()
    assert order.status == OrderStatus.FINALIZED


def test_order_whose_child_was_split_is_not_reversed():
    order = SplitOrderFactory(at=OrderStatus.FINALIZED)
    child = order.outputs.get(code__endswith="-002")
    lines = (NewLine(1, LineKind.PIECE, "X", Decimal("4.5")),)
    SplitOrderFactory(source_lot=child, lines=lines, at=OrderStatus.FINALIZED)
    with pytest.raises(OutputsTouchedError):
        lifecycle.reverse(order.pk, author=AUTHOR)
    assert Lot.objects.get(pk=order.source_lot_id).status == LotStatus.CONSUMED


def test_order_whose_entry_was_discarded_is_not_reversed():
    order = SplitOrderFactory(at=OrderStatus.FINALIZED)
    OutboxEntry.objects.update(status=EntryStatus.DISCARDED)
    with pytest.raises(NotInLedgerError):
        lifecycle.reverse(order.pk, author=AUTHOR)


def test_only_finalized_orders_are_reversed():
    with pytest.raises(WrongStatusError):
        lifecycle.reverse(SplitOrderFactory().pk, author=AUTHOR)


def test_change_without_its_audit_record_does_not_happen(monkeypatch):
    order = SplitOrderFactory(at=OrderStatus.FAILED)

    def refuse(**_kwargs):
        raise OSError("no audit")

    monkeypatch.setattr("recovery.audit.record", refuse)
    with pytest.raises(OSError, match="no audit"):
        lifecycle.retry(order.pk, author=AUTHOR)
    order.refresh_from_db()
    assert order.status == OrderStatus.FAILED
