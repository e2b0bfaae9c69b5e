"""The five steps: what each refuses, and what each leaves behind."""

from decimal import Decimal

import pytest
from django.db import transaction

from ledger.models import OutboxEntry
from recovery.fields import KEY_MAX_LENGTH
from splits import lifecycle, steps
from splits.errors import (
    CodeTakenError,
    CodeTooLongError,
    LedgerRefusedError,
    LotNotAvailableError,
    NoLinesError,
    SumMismatchError,
)
from splits.finalize import Ending, finalize
from splits.lifecycle import NewLine
from splits.models import LineKind, Lot, LotStatus, OrderStatus, SplitLine, SplitOrder
from tests.factories import AUTHOR, LotFactory, SplitOrderFactory
from tests.splits.state import assert_finalized_once, assert_untouched

pytestmark = pytest.mark.django_db


def piece(quantity: str, *, line: int = 1, sku: str = "OAK-S") -> NewLine:
    return NewLine(line, LineKind.PIECE, sku, Decimal(quantity))


def test_order_without_lines_is_not_valid():
    with pytest.raises(NoLinesError, match="has no lines: SO-"):
        steps.validate(SplitOrderFactory(lines=()))


@pytest.mark.parametrize("quantity", ["9.999999", "10.000001"])
def test_lines_must_add_up_to_the_last_decimal(quantity):
    with pytest.raises(SumMismatchError, match=f"{quantity} in lines, 10 in B"):
        steps.validate(SplitOrderFactory(lines=(piece(quantity),)))


def test_lines_that_add_up_are_valid():
    assert steps.validate(SplitOrderFactory(lines=(piece("10.000000"),))) is None


def test_consumed_lot_is_not_valid():
    order = SplitOrderFactory()
    Lot.objects.filter(pk=order.source_lot_id).consume()
    order.source_lot.refresh_from_db()
    with pytest.raises(LotNotAvailableError):
        steps.validate(order)


@pytest.mark.parametrize(
    ("length", "fits"), [(KEY_MAX_LENGTH - 4, True), (KEY_MAX_LENGTH - 3, False)]
)
def test_codes_of_children_must_fit_a_key(length, fits):
    order = SplitOrderFactory(source_lot__code="x" * length, source_lot__root_code="root")
    if fits:
        steps.validate(order)
    else:
        with pytest.raises(CodeTooLongError):
            steps.validate(order)


def test_aggregate_must_fit_a_key():
    order = SplitOrderFactory(source_lot__root_code="x" * (KEY_MAX_LENGTH - 3))
    with pytest.raises(CodeTooLongError, match="lot:x"):
        steps.validate(order)


def test_invalid_order_fails_with_its_code_and_moves_nothing():
    order = SplitOrderFactory(lines=(piece("9"),))
    outcome = finalize(order.pk, author=AUTHOR)
    assert (outcome.ending, outcome.code) == (Ending.FAILED, "sum_mismatch")
    order.refresh_from_db()
    assert order.last_finalize_error_code == "sum_mismatch"
    assert_untouched(order)


def test_source_is_consumed_once():
    order = SplitOrderFactory()
    with transaction.atomic():
        steps.consume_source(order)
        assert Lot.objects.get(pk=order.source_lot_id).status == LotStatus.CONSUMED
        with pytest.raises(LotNotAvailableError):
            steps.consume_source(order)


def test_child_codes_are_the_boards_and_three_digits():
    assert steps.child_code("B-1", 7) == "B-1-007"
    assert steps.child_code("B-1", 999) == "B-1-999"


def test_code_of_a_living_lot_is_taken():
    order = SplitOrderFactory()
    LotFactory(code=f"{order.source_lot.code}-002")
    outcome = finalize(order.pk, author=AUTHOR)
    assert (outcome.ending, outcome.code) == (Ending.FAILED, "code_taken")
    assert not order.outputs.exists()


def test_lot_can_be_split_again_after_a_reversal():
    first = SplitOrderFactory(at=OrderStatus.REVERSED)
    again = SplitOrderFactory(source_lot=first.source_lot)
    assert finalize(again.pk, author=AUTHOR).ending is Ending.FINALIZED
    assert_finalized_once(again)
    code = first.source_lot.code
    assert sorted(first.outputs.values_list("code", flat=True)) == [
        f"{code}-00{line}~{first.number}" for line in (1, 2, 3)
    ]
    assert {lot.status for lot in first.outputs.all()} == {LotStatus.CANCELLED}


def test_retired_code_that_would_be_too_long_is_shortened_uniquely():
    board = LotFactory(code="x" * 120, root_code="root")
    first = SplitOrderFactory(number="n" * 110, source_lot=board)
    finalize(first.pk, author=AUTHOR)
    lifecycle.reverse(first.pk, author=AUTHOR)
    again = SplitOrderFactory(source_lot=board)
    assert finalize(again.pk, author=AUTHOR).ending is Ending.FINALIZED
    codes = set(first.outputs.values_list("code", flat=True))
    assert len(codes) == 3
    assert {len(code) for code in codes} == {len("x" * 124 + "~") + steps.DIGEST_LENGTH}


def test_descendants_entries_belong_to_the_root_lots_aggregate():
    first = SplitOrderFactory(at=OrderStatus.FINALIZED)
    child = first.outputs.get(code__endswith="-001")
    second = SplitOrderFactory(source_lot=child, lines=(piece("4.5"),))
    assert finalize(second.pk, author=AUTHOR).ending is Ending.FINALIZED
    root = first.source_lot.code
    assert set(OutboxEntry.objects.values_list("aggregate", flat=True)) == {f"lot:{root}"}
    assert second.outputs.get().code == f"{root}-001-001"
    assert second.outputs.get().root_code == root


def test_ledgers_refusal_has_a_code_of_its_own(settings):
    order = SplitOrderFactory(
        lines=[piece("0.1", line=line, sku="S" * 100 + str(line)) for line in range(1, 101)]
    )
    settings.OUTBOX_MAX_PAYLOAD_BYTES = 1_024
    with transaction.atomic(), pytest.raises(LedgerRefusedError, match="1024"):
        steps.post_ledger(order)


def test_postings_add_up_to_zero():
    lines = steps.postings(SplitOrderFactory())
    assert sum(line.quantity for line in lines) == 0
    assert {line.unit for line in lines} == {"m2"}


def test_code_taken_names_the_codes():
    order = SplitOrderFactory()
    LotFactory(code=f"{order.source_lot.code}-003")
    with transaction.atomic(), pytest.raises(CodeTakenError, match="-003"):
        steps.create_outputs(order)


def test_order_has_at_most_999_lines():
    lines = [piece("0.01", line=line) for line in range(1, 1000)] + [
        NewLine(1000, LineKind.OFFCUT, "OFF", Decimal("0.01"))
    ]
    with pytest.raises(Exception, match=r"line_three_digits|CONSTRAINT"):
        SplitOrderFactory(lines=lines)
    assert not SplitLine.objects.filter(line=1000).exists()
    assert SplitOrder.objects.count() == 0
