"""Undo what drills made: from whatever state they, or whoever killed them, left it in."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db.models import QuerySet

from ledger.models import EntryStatus, OutboxEntry
from ledger.outbox import JOB
from recovery.clock import db_now
from recovery.models import AuditRecord
from splits import lifecycle, stuck
from splits.audit import Author
from splits.drills import poison
from splits.drills.exercise import DrillFailedError, Exercise
from splits.drills.goods import entries_of, stock_left, withdraw
from splits.drills.liveness import may_live
from splits.drills.names import code_of, named
from splits.drills.overrides import settings_here
from splits.errors import SplitError
from splits.finalize import finalize
from splits.models import Lot, LotStatus, OrderStatus, SplitOrder, StepName
from splits.models.lots import LotQuerySet
from splits.models.transitions import UNFINISHED

TARGET = "drill"
STARTED, FINISHED = "drill-started", "drill-finished"
CLEANING_S = 60.0
SLACK_S = 30.0
STALE_S = 2.0
"""An order that makes no progress for so long has no finalizer any more: its drill is over."""
MANY = 1_000_000
SETTLED = (OrderStatus.CANCELLED, OrderStatus.REVERSED)
BLOCKING = (EntryStatus.PENDING, EntryStatus.DEAD)


def clean(exercise: Exercise) -> list[str]:
    """Undo what the drill made, as far as it can be; return what is left of it."""
    author = exercise.author
    try:
        orders = list(orders_of(exercise.code).values_list("pk", flat=True))
        if orders:
            exercise.wait(
                "its order is cancelled or reversed",
                lambda: all(_settle(pk, author) for pk in orders),
            )
        boards = [lot for lot in lots_of(exercise.code).available() if withdraw(lot)]
        if boards:
            codes = ", ".join(lot.code for lot in boards)
            exercise.note(f"taken out of stock by an entry that reverses its receipt: {codes}")
        if entries_of(exercise.code).exists():
            exercise.work(
                JOB,
                "its ledger entries are posted; they stay, and add up to zero",
                lambda: _no_entry_waits(exercise.code, author),
            )
    except DrillFailedError as error:
        return [str(error), *left(exercise.code)]
    return left(exercise.code)


def orders_of(code: str) -> QuerySet[SplitOrder]:
    """Return the orders of drill ``code``."""
    return SplitOrder.objects.filter(named("number", code))


def lots_of(code: str) -> LotQuerySet:
    """Return the boards of drill ``code`` and their pieces."""
    return Lot.objects.filter(named("code", code))


def left(code: str) -> list[str]:
    """Return what is left of drill ``code`` and should not be."""
    orders = orders_of(code).exclude(status__in=SETTLED)
    lots = lots_of(code).available()
    entries = entries_of(code).filter(status__in=BLOCKING)
    return [
        *(f"order {order.number} is {order.status}" for order in orders),
        *(f"lot {lot.code} is {lot.status}" for lot in lots),
        *(f"outbox entry {entry.pk} is {entry.status}" for entry in entries),
        *(f"{account} holds {total} of it" for account, total in stock_left(code).items()),
    ]


def _settle(order_id: int, author: Author) -> bool:
    """Bring an order one move nearer to cancelled or reversed; True: it is."""
    order = SplitOrder.objects.get(pk=order_id)
    if order.status in SETTLED:
        return True
    try:
        _move(order, author)
    except SplitError:
        return False  # somebody was faster: look again
    return False


def _move(order: SplitOrder, author: Author) -> None:
    with settings_here(JOB_FINALIZE_RETRY_LIMIT=MANY, JOB_STUCK_ALERT_THRESHOLD=MANY):
        if order.finalize_in_progress:
            _take_from_finalizer(order, author)
        elif order.status == OrderStatus.FINALIZED:
            lifecycle.reverse(order.pk, author=author)
        elif order.steps.filter(name=StepName.CONSUME_SOURCE).exists():
            _finish(order, author)
        else:
            lifecycle.cancel(order.pk, author=author)


def _take_from_finalizer(order: SplitOrder, author: Author) -> None:
    request = stuck.Request(author=author, threshold_s=STALE_S, due=False)
    for found in stuck.find(request, [order.number]):
        stuck.recover(found, request)


def _finish(order: SplitOrder, author: Author) -> None:
    """Finalize an order that can no longer be cancelled, so that it can be reversed."""
    if order.status == OrderStatus.FAILED:
        lifecycle.retry(order.pk, author=author, due=False)
    elif order.status == OrderStatus.QUARANTINED:
        lifecycle.release(order.pk, author=author, due=False)
    finalize(order.pk, author=author, now=True)


def _no_entry_waits(code: str, author: Author) -> bool:
    for entry in poison.poison_of(code).filter(status__in=BLOCKING):
        if entry.status == EntryStatus.DEAD:
            poison.discard(entry, author)
        else:
            poison.hurry(entry)
    return not entries_of(code).filter(status__in=BLOCKING).exists()


def leftovers() -> list[str]:
    """Return the codes of drills that are over, or were killed, and left something behind."""
    return [code for code in sorted(set(_unsettled())) if not under_way_until(code)]


def under_way() -> dict[str, datetime]:
    """Return the codes of drills that may still be at work, each with until when at most."""
    found = ((code, under_way_until(code)) for code in sorted(set(_unsettled())))
    return {code: until for code, until in found if until}


def _unsettled() -> Iterator[str]:
    """Yield the codes of drills of which something is in a state that it should not stay in."""
    open_orders = SplitOrder.objects.filter(
        named("number"), status__in=(*UNFINISHED, OrderStatus.FINALIZED)
    )
    open_lots = Lot.objects.filter(named("code"), status=LotStatus.AVAILABLE)
    open_entries = OutboxEntry.objects.filter(named("aggregate", "lot:DRILL-"), status__in=BLOCKING)
    names = (
        *open_orders.values_list("number", flat=True),
        *open_lots.values_list("code", flat=True),
        *(it.removeprefix("lot:") for it in open_entries.values_list("aggregate", flat=True)),
    )
    yield from filter(None, map(code_of, names))


def under_way_until(code: str) -> datetime | None:
    """Return until when drill ``code`` may be at work, here or on another host; None: it is not."""
    records = AuditRecord.objects.filter(target_type=TARGET, target_id=code)
    started = records.filter(action=STARTED).first()
    if started is None or records.filter(action=FINISHED).exists():
        return None
    facts = started.evidence
    until = started.at + timedelta(seconds=facts["timeout_s"] + CLEANING_S + SLACK_S)
    return until if may_live(facts["host"], facts["pid"]) and db_now() < until else None
