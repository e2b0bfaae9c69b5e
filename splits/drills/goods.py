"""What drills work on: boards and orders that nobody misses."""

from decimal import Decimal

from django.db import transaction
from django.db.models import QuerySet

from ledger.models import OutboxEntry, Posting
from ledger.outbox import Line, publish, quantity_text
from splits import lifecycle
from splits.cutplans import Board
from splits.drills.names import SKU, named
from splits.imports import RECEIPTS, receive
from splits.lifecycle import NewLine
from splits.models import LineKind, Lot, SplitOrder

PIECE_SKU = f"{SKU}-PIECE"
UNIT = "m2"
WHOLE = Decimal(10)
LINES = (
    NewLine(1, LineKind.PIECE, PIECE_SKU, Decimal(6)),
    NewLine(2, LineKind.OFFCUT, PIECE_SKU, Decimal(4)),
)
WITHDRAWN_EVENT = "lot-withdrawn"


def make_board(code: str) -> Lot:
    """Receive a board; its receipt goes to the ledger like any other. Needs a transaction."""
    return receive(Board(code, SKU, WHOLE, UNIT))


def make_order(code: str) -> SplitOrder:
    """Return a ready order ``code`` on a board of its own, which no worker takes: it is not due."""
    with transaction.atomic():
        order = lifecycle.create_order(number=code, source_lot=make_board(code), lines=LINES)
        lifecycle.submit(order.pk, due=False)
    order.refresh_from_db()
    return order


def withdraw(lot: Lot) -> bool:
    """Take a received board out of stock, by an entry that reverses its receipt.

    False: it is not available.
    """
    with transaction.atomic():
        list(Lot.objects.filter(pk=lot.pk).locked())
        if not Lot.objects.filter(pk=lot.pk).cancel():
            return False
        publish(
            event_key=f"lot:{lot.code}:withdrawn",
            event_type=WITHDRAWN_EVENT,
            aggregate=lot.aggregate,
            lines=[
                Line(f"stock:{lot.sku}", -lot.quantity, lot.unit),
                Line(RECEIPTS, lot.quantity, lot.unit),
            ],
        )
    return True


def entries_of(code: str) -> QuerySet[OutboxEntry]:
    """Return the outbox entries of the drill ``code``."""
    return OutboxEntry.objects.filter(named("aggregate", f"lot:{code}")).order_by("pk")


def stock_left(code: str) -> dict[str, str]:
    """Return what the postings of drill ``code`` add up to: the accounts that are not at zero."""
    keys = [entry.event_key for entry in entries_of(code)]
    postings = Posting.objects.filter(transaction__event_key__in=keys).select_related("account")
    sums: dict[str, Decimal] = {}
    for posting in postings:
        account = str(posting.account)
        sums[account] = sums.get(account, Decimal(0)) + posting.quantity
    return {account: quantity_text(total) for account, total in sorted(sums.items()) if total}
