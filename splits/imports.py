"""Import cut plans: receive boards, create their split orders, each in one transaction."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

from django.core.exceptions import ValidationError
from django.db import DatabaseError, IntegrityError, connection, reset_queries, transaction
from django.db.models.functions import Now

from ledger import outbox
from recovery import tracing
from recovery.errors import is_infrastructure, is_row_locked, with_retries
from recovery.fields import KEY_MAX_LENGTH
from recovery.wakeups import wake_on_commit
from splits import lifecycle
from splits.cutplans import Board, CutPlan, Fault, HeaderError, PlannedLine, PlannedOrder
from splits.errors import SplitError
from splits.models import Lot, OrderStatus, SplitLine, SplitOrder

RECEIVED_EVENT = "lot-received"
RECEIPTS = "external:receipts"
WINDOW_ORDERS = 100
WINDOW_ROWS = 2_000
RECEIVED_CODE_MAX = KEY_MAX_LENGTH - len("lot::received")


class RefusedError(Exception):
    """This order cannot be imported."""


class ImportStoppedError(Exception):
    """The database failed in the middle of the import."""


@dataclass(frozen=True)
class Known:
    """What the database knew of a window of orders before they are stored."""

    orders: dict[str, SplitOrder] = field(default_factory=dict)
    lines: dict[int, list[PlannedLine]] = field(default_factory=dict)
    lots: dict[str, Lot] = field(default_factory=dict)


@dataclass
class Import:
    """One import: how it is done, and what it did so far."""

    finalize: bool = False
    """Submit the orders, also those that were imported before and are still drafts."""
    on_fault: Callable[[Fault], object] = lambda _fault: None
    on_progress: Callable[[int], object] = lambda _offset: None
    """Called with the bytes read so far, after each window of orders."""
    imported: int = 0
    skipped: int = 0
    submitted: int = 0
    faults: int = 0

    def run(self, file: BinaryIO) -> None:
        """Import the orders of ``file`` (seekable), each all-or-nothing.

        Faults are handed to ``on_fault`` as they are found. Safe to repeat: what is there
        with the same content is skipped. Raises ImportStoppedError; what is counted is committed.
        """
        plan = CutPlan(file, vendor=connection.vendor)
        try:
            for window in self._windows(plan):
                self._store_window(window)
                self.on_progress(plan.offset)
                reset_queries()  # with DEBUG Django keeps every statement
        except HeaderError as error:
            self._refuse(Fault(1, "", str(error)))

    def _windows(self, plan: CutPlan) -> Iterator[list[PlannedOrder]]:
        """Yield orders to be looked up together; report the faults between them."""
        window: list[PlannedOrder] = []
        rows = 0
        for item in plan:
            if isinstance(item, Fault):
                self._refuse(item)
                continue
            window.append(item)
            rows += len(item.lines)
            if len(window) >= WINDOW_ORDERS or rows >= WINDOW_ROWS:
                yield window
                window, rows = [], 0
        yield window

    def _refuse(self, fault: Fault) -> None:
        self.faults += 1
        self.on_fault(fault)

    def _store_window(self, window: Sequence[PlannedOrder]) -> None:
        try:
            known = with_retries(partial(look_up, window))
            for order in window:
                self._store(order, known)
        except DatabaseError as error:
            raise ImportStoppedError(f"the database refused: {error}") from error

    def _store(self, order: PlannedOrder, known: Known) -> None:
        before = self.imported
        try:
            self._store_once(order, known)
        except KeyboardInterrupt:
            self.imported = before + _was_committed(order, known)
            raise
        except (RefusedError, SplitError, outbox.LedgerError, ValidationError) as error:
            self._refuse(Fault(order.row, order.number, _text_of(error)))
        except DatabaseError as error:
            if is_infrastructure(error) and not is_row_locked(error):
                raise
            self._refuse(Fault(order.row, order.number, f"the database refused: {error}"))

    def _store_once(self, order: PlannedOrder, known: Known) -> None:
        try:
            with_retries(partial(self._import_or_skip, order, known))
        except (IntegrityError, SplitError):
            # Somebody was faster, or this order's own commit was cut on the wire: look again.
            fresh = with_retries(partial(look_up, [order]))
            with_retries(partial(self._import_or_skip, order, fresh))

    def _import_or_skip(self, order: PlannedOrder, known: Known) -> None:
        existing = known.orders.get(order.number)
        if existing:
            submitted = self._skip(order, existing, known)
        else:
            submitted = self._import(order, known.lots.get(order.board.code))
        self.skipped += bool(existing)
        self.imported += not existing
        self.submitted += submitted

    def _skip(self, order: PlannedOrder, existing: SplitOrder, known: Known) -> bool:
        _require_same(order, existing, known.lines.get(existing.pk, []))
        if not self.finalize or existing.status != OrderStatus.DRAFT:
            return False
        return lifecycle.submit(existing.pk)

    def _import(self, order: PlannedOrder, lot: Lot | None) -> bool:
        # A trace an order: one of a whole import would have no end.
        with tracing.span("split_order.import", order=order.number), transaction.atomic():
            if not lot:
                create_received(order, receive(order.board), ready=self.finalize)
                return self.finalize
            _require_same_lot(order.board, lot)
            lines = [lifecycle.NewLine(*line) for line in order.lines]
            created = lifecycle.create_order(number=order.number, source_lot=lot, lines=lines)
            return self.finalize and lifecycle.submit(created.pk)


def _was_committed(order: PlannedOrder, known: Known) -> bool:
    """Tell whether an order went in whose import was interrupted, perhaps after its commit."""
    # The interruption may have hit Django's own book-keeping of the transaction: begin anew.
    connection.close()
    connection.connect()
    return order.number not in known.orders and bool(look_up([order]).orders)


def look_up(window: Sequence[PlannedOrder]) -> Known:
    """Return what the database knows of these orders and their boards."""
    orders = SplitOrder.objects.select_related("source_lot").filter(
        number__in=[order.number for order in window]
    )
    by_number = {order.number: order for order in orders}
    lines: dict[int, list[PlannedLine]] = {}
    rows = SplitLine.objects.filter(order__in=by_number.values()).order_by("order_id", "line")
    for order_id, *line in rows.values_list("order_id", "line", "kind", "sku", "quantity"):
        lines.setdefault(order_id, []).append(PlannedLine._make(line))
    codes = {order.board.code for order in window if order.number not in by_number}
    lots = Lot.objects.filter(code__in=codes)
    return Known(by_number, lines, {lot.code: lot for lot in lots})


def receive(board: Board) -> Lot:
    """Make a lot of ``board`` and publish its receipt; needs a transaction.

    The new row is locked by its insertion, as publishing for its aggregate asks for.
    Raises RefusedError: the code is too long; IntegrityError: there is such a lot.
    """
    if len(board.code) > RECEIVED_CODE_MAX:
        raise RefusedError(f"board_code is longer than {RECEIVED_CODE_MAX} characters")
    lot = Lot.objects.create(**board._asdict(), root_code=board.code)
    outbox.publish(
        event_key=f"lot:{lot.code}:received",
        event_type=RECEIVED_EVENT,
        aggregate=lot.aggregate,
        lines=[
            outbox.Line(f"stock:{board.sku}", board.quantity, board.unit),
            outbox.Line(RECEIPTS, -board.quantity, board.unit),
        ],
    )
    return lot


def create_received(order: PlannedOrder, lot: Lot, *, ready: bool) -> None:
    """Create the order of a lot that this transaction made, so that nobody else can hold it.

    Does in two statements what lifecycle.create_order and submit do in eight.
    """
    state = {"status": OrderStatus.READY, "next_finalize_at": Now()} if ready else {}
    created = SplitOrder.objects.create(
        number=order.number,
        source_lot=lot,
        live_lot=lot,
        traceparent=tracing.current(),
        **state,
    )
    SplitLine.objects.bulk_create(
        SplitLine(order=created, **line._asdict()) for line in order.lines
    )
    if ready:
        wake_on_commit(lifecycle.FINALIZE_JOB)


def _require_same_lot(board: Board, lot: Lot) -> None:
    # Read without a lock: a lot's content never changes, its status is checked under the lock.
    difference = _difference(board, lot)
    if difference:
        raise RefusedError(f"lot {lot.code} exists with other content: {difference}")


def _require_same(order: PlannedOrder, existing: SplitOrder, lines: Sequence[PlannedLine]) -> None:
    difference = _difference(order.board, existing.source_lot)
    if not difference and tuple(lines) != order.lines:
        there = {line.line: line for line in lines}
        planned = {line.line: line for line in order.lines}
        number = min(n for n in there | planned if there.get(n) != planned.get(n))
        difference = f"line {number} differs"
    if difference:
        raise RefusedError(f"order {order.number} exists with other content: {difference}")


def _difference(board: Board, lot: Lot) -> str:
    for column, value in board._asdict().items():
        found = getattr(lot, column)
        if found != value:
            return f"{column} is {_plain(found)}, not {_plain(value)}"
    return ""


def _plain(value: object) -> str:
    return value if isinstance(value, str) else outbox.quantity_text(value)  # type: ignore[arg-type]


def _text_of(error: Exception) -> str:
    return " ".join(error.messages) if isinstance(error, ValidationError) else str(error)
