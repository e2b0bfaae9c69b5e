"""Rows for tests; orders climb to their status by real transitions."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import factory
from factory.django import DjangoModelFactory

from recovery.clock import db_now
from splits import lifecycle
from splits.audit import Author
from splits.finalize import Ending, finalize
from splits.lifecycle import NewLine
from splits.models import LineKind, Lot, OrderStatus, SplitOrder

AUTHOR = Author("cli:tester", reason="because")

LINES = (
    NewLine(1, LineKind.PIECE, "OAK-S", Decimal("4.5")),
    NewLine(2, LineKind.PIECE, "OAK-S", Decimal("4.5")),
    NewLine(3, LineKind.OFFCUT, "OAK-OFF", Decimal("1")),
)


class LotFactory(DjangoModelFactory[Lot]):
    """A received board of 10 m2."""

    class Meta:
        model = Lot

    code = factory.Sequence(lambda n: f"B{n:05d}")
    sku = "OAK"
    quantity = Decimal(10)
    unit = "m2"
    root_code = factory.SelfAttribute("code")


class SplitOrderFactory(DjangoModelFactory[SplitOrder]):
    """An order of two pieces and an offcut; ``at`` is the status it climbs to."""

    class Meta:
        model = SplitOrder

    number = factory.Sequence(lambda n: f"SO-{n:05d}")
    source_lot = factory.SubFactory(LotFactory)
    lines = LINES
    at = OrderStatus.READY

    @classmethod
    def _create(cls, _model: Any, *_args: Any, **kwargs: Any) -> SplitOrder:
        at = kwargs.pop("at")
        order = lifecycle.create_order(**kwargs)
        if at != OrderStatus.DRAFT:
            lifecycle.submit(order.pk)
        climb = _CLIMBS.get(at)
        if climb:
            climb(order)
        order.refresh_from_db()
        return order


def _finalized(order: SplitOrder) -> None:
    outcome = finalize(order.pk, author=AUTHOR, now=True)
    assert outcome is not None
    assert outcome.ending is Ending.FINALIZED, outcome


def _reversed(order: SplitOrder) -> None:
    _finalized(order)
    assert lifecycle.reverse(order.pk, author=AUTHOR)


def _cancelled(order: SplitOrder) -> None:
    assert lifecycle.cancel(order.pk, author=AUTHOR)


def _failed(order: SplitOrder) -> None:
    this = SplitOrder.objects.filter(pk=order.pk)
    for _attempt in range(5):
        assert this.claim("tester")
        epoch = this.get().finalize_epoch
        last = this.get().finalize_attempts == 5
        assert this.fail(epoch, code="unexpected", error="no", delay_s=None if last else 0)


def _quarantined(order: SplitOrder) -> None:
    this = SplitOrder.objects.filter(pk=order.pk)
    assert this.claim("tester")
    assert this.reset(
        this.get().finalize_epoch,
        status=OrderStatus.QUARANTINED,
        next_finalize_at=None,
        recovered_at=[db_now().isoformat()],
    )


_CLIMBS = {
    OrderStatus.FINALIZED: _finalized,
    OrderStatus.REVERSED: _reversed,
    OrderStatus.CANCELLED: _cancelled,
    OrderStatus.FAILED: _failed,
    OrderStatus.QUARANTINED: _quarantined,
}


def hang(order: SplitOrder, *, age_s: float = 1_000) -> SplitOrder:
    """Claim ``order`` as a finalizer that has made no progress for ``age_s`` seconds."""
    this = SplitOrder.objects.filter(pk=order.pk)
    assert this.claim("dead-host:1:token")
    this.update(finalize_progress_at=db_now() - timedelta(seconds=age_s))
    order.refresh_from_db()
    return order
