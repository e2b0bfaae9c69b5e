"""Split orders to finalize: a board each, five pieces and an offcut, submitted and due."""

import itertools
import random
import secrets
from decimal import Decimal

from django.db import transaction

from splits.models import LineKind, Lot, OrderStatus, SplitLine, SplitOrder

SKUS = 2_000
PIECES = 5
BOARD = Decimal(10_000)
UNIT = "mm2"
DUE_SINCE = "2020-01-01T00:00:00Z"

_numbers = itertools.count(1)
_run = secrets.token_hex(4)


def store(count: int, *, label: str = "") -> list[int]:
    """Store ``count`` orders that are ready and due, with lots and lines; return their ids."""
    numbers = [next(_numbers) for _ in range(count)] if not label else range(1, count + 1)
    mark = label or _run
    with transaction.atomic():
        Lot.objects.bulk_create(_board(number, mark) for number in numbers)
        codes = [_code(number, mark) for number in numbers]
        lots = {lot.code: lot for lot in Lot.objects.filter(code__in=codes)}
        SplitOrder.objects.bulk_create(
            _order(number, mark, lots[_code(number, mark)]) for number in numbers
        )
        orders = SplitOrder.objects.filter(source_lot__code__in=codes).order_by("id")
        SplitLine.objects.bulk_create(
            line
            for number, order in zip(numbers, orders, strict=True)
            for line in _lines(number, order)
        )
    return [order.pk for order in orders]


def _code(number: int, mark: str) -> str:
    return f"BENCH-{mark}-{number:06d}"


def _board(number: int, mark: str) -> Lot:
    code = _code(number, mark)
    sku = f"SHEET-{number % 20}"
    return Lot(code=code, root_code=code, sku=sku, quantity=BOARD, unit=UNIT)


def _order(number: int, mark: str, lot: Lot) -> SplitOrder:
    return SplitOrder(
        number=f"SO-{mark}-{number:06d}",
        source_lot=lot,
        live_lot=lot,
        status=OrderStatus.READY,
        next_finalize_at=DUE_SINCE,
    )


def _lines(number: int, order: SplitOrder) -> list[SplitLine]:
    draw = random.Random(number)
    sizes = [Decimal(draw.randint(500, 1_900)) for _ in range(PIECES)]
    pieces = [
        SplitLine(
            order=order,
            line=line,
            kind=LineKind.PIECE,
            sku=f"PANEL-{draw.randrange(SKUS)}",
            quantity=size,
        )
        for line, size in enumerate(sizes, start=1)
    ]
    rest = SplitLine(
        order=order,
        line=PIECES + 1,
        kind=LineKind.OFFCUT,
        sku="OFFCUT",
        quantity=BOARD - sum(sizes),
    )
    return [*pieces, rest]
