"""What a split order's life should look like: plain Python, no database, one world at a time."""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

ATTEMPTS = 3
RESETS = 2
BREAKER_FAILURES = 2
STEPS = ("validate", "consume_source", "create_outputs", "post_ledger", "notify")
IN_ORDER = [f"{when}_step.{step}" for step in STEPS for when in ("before", "after")]
POINTS = [*IN_ORDER, "before_finish"]

FAILED = "split-order-finalize-failed"
LIMIT = "split-order-finalize-retry-limit"
RECOVERED = "split-order-finalize-stuck-recovered"
QUARANTINED = "split-order-quarantined"
RELEASED = "split-order-released"
RETRIED = "split-order-retried"
CANCELLED = "split-order-cancelled"
REVERSED = "split-order-reversed"


class RefusedError(Exception):
    """What is asked for is refused; the argument is the code of the error."""


@dataclass
class Lot:
    """A board or what was cut of one."""

    code: str
    sku: str
    quantity: Decimal
    root: str
    parent: "Order | None" = None
    status: str = "available"


@dataclass
class Order:
    """A split order; ``due`` is None where nobody will start it but an operator."""

    number: str
    lot: Lot
    lines: list[tuple[str, Decimal]]
    status: str = "draft"
    running: bool = False
    epoch: int = 0
    attempts: int = 0
    due: bool | None = None
    code: str = ""
    fresh: bool = False
    resets: int = 0
    recent_resets: int = 0
    steps: list[str] = field(default_factory=list)
    audit: list[str] = field(default_factory=list)

    @property
    def live(self) -> bool:
        """Tell whether it holds its lot."""
        return self.status not in ("cancelled", "reversed")

    def move(self, status: str, *, due: bool | None, audit: str = "") -> None:
        """Go to ``status``, out of progress."""
        self.status, self.running, self.due = status, False, due
        if audit:
            self.audit.append(audit)


@dataclass
class Attempt:
    """A finalizer; one that was reset is a zombie and changes nothing any more."""

    order: Order
    epoch: int
    number: int
    done: frozenset[str]
    at: str = ""
    ending: str = ""

    @property
    def holds(self) -> bool:
        """Tell whether the order is still its own."""
        return self.order.running and self.order.epoch == self.epoch

    def points(self) -> list[str]:
        """Return where it stops."""
        return [point for point in POINTS if point.partition(".")[2] not in self.done]

    def end(self, ending: str) -> None:
        """Be over."""
        self.at, self.ending = "", ending


@dataclass
class Endpoint:
    """The completion endpoint and its breaker."""

    status: int = 204
    failures: int = 0
    open: bool = False
    try_due: bool = False
    told: list[str] = field(default_factory=list)


class World:
    """Lots, orders and what was published, and what each action makes of them."""

    def __init__(self) -> None:
        self.lots: list[Lot] = []
        self.orders: list[Order] = []
        self.entries: list[tuple[str, str, Counter[str]]] = []
        self.sightings: set[tuple[str, int]] = set()
        self.endpoint = Endpoint()

    def receive(self, code: str, sku: str, quantity: Decimal) -> None:
        """Take in a board."""
        if any(lot.code == code for lot in self.lots):
            raise RefusedError("taken")
        self.lots.append(Lot(code, sku, quantity, code))
        self._publish(f"lot:{code}:received", self.lots[-1], {f"stock:{sku}": quantity})

    def _publish(self, key: str, lot: Lot, stock: Any) -> None:
        self.entries.append((key, f"lot:{lot.root}", Counter(stock)))

    def create(self, number: str, lot: Lot, lines: list[tuple[str, Decimal]]) -> None:
        """Make a draft that holds the lot."""
        if any(order.number == number for order in self.orders):
            raise RefusedError("number_taken")
        if lot.status != "available":
            raise RefusedError("lot_not_available")
        if lot.parent and "post_ledger" not in lot.parent.steps:
            raise RefusedError("lot_not_available")
        if self._is_held(lot):
            raise RefusedError("lot_busy")
        self.orders.append(Order(number, lot, lines))

    def _is_held(self, lot: Lot) -> bool:
        return any(order.live and order.lot is lot for order in self.orders)

    def is_free(self, lot: Lot) -> bool:
        """Tell whether the lot could be split, though it may not be published yet."""
        return lot.status == "available" and not self._is_held(lot)

    def submit(self, order: Order) -> bool:
        """Let a draft be finalized."""
        if order.status == "ready":
            return False
        _require(order, "draft")
        order.move("ready", due=True)
        return True

    def retry(self, order: Order) -> bool:
        """Give a failed order fresh attempts."""
        if order.status == "ready":
            return False
        _require(order, "failed")
        order.move("ready", due=True, audit=RETRIED)
        order.attempts = 0
        return True

    def release(self, order: Order, *, due: bool = True) -> bool:
        """Let a quarantined order go."""
        if order.status == "ready":
            return False
        _require(order, "quarantined")
        order.move("ready", due=due or None, audit=RELEASED)
        order.attempts = order.resets = order.recent_resets = 0
        return True

    def cancel(self, order: Order) -> bool:
        """Cancel an order that has not moved stock."""
        if order.status == "cancelled":
            return False
        if order.running:
            raise RefusedError("in_progress")
        if order.status in ("finalized", "reversed"):
            raise RefusedError("wrong_status")
        if "consume_source" in order.steps:
            raise RefusedError("stock_moved")
        order.move("cancelled", due=None, audit=CANCELLED)
        return True

    def outputs(self, order: Order) -> list[Lot]:
        """Return the lots that the order made."""
        return [lot for lot in self.lots if lot.parent is order]

    def reverse(self, order: Order) -> bool:
        """Undo a finalized order whose child lots are untouched."""
        if order.status == "reversed":
            return False
        _require(order, "finalized")
        outputs = self.outputs(order)
        if any(lot.status != "available" or self._is_held(lot) for lot in outputs):
            raise RefusedError("outputs_touched")
        for lot in outputs:
            lot.status = "cancelled"
        order.lot.status = "available"
        back = Counter({sku: -quantity for sku, quantity in _stock(order).items()})
        self._publish(f"split-order:{order.number}:reversed", order.lot, back)
        order.move("reversed", due=None, audit=REVERSED)
        return True

    def claim(self, order: Order, *, now: bool) -> Attempt | None:
        """Begin an attempt, if the order is to be had."""
        if order.status != "ready" or order.running or not (now or order.due):
            return None
        order.running = order.fresh = True
        order.epoch += 1
        order.attempts += 1
        attempt = Attempt(order, order.epoch, order.attempts, frozenset(order.steps))
        attempt.at = attempt.points()[0]
        return attempt

    def go(self, attempt: Attempt, inside: str = "") -> None:
        """Take the finalizer to its next point; ``inside``: what it meets in the transaction."""
        when, _, step = attempt.at.partition("_step.")
        if when == "before_finish":
            return self._finish(attempt)
        if when == "before" and not self._take(attempt, step, inside):
            return None
        points = attempt.points()
        attempt.at = points[points.index(attempt.at) + 1]
        return None

    def _finish(self, attempt: Attempt) -> None:
        if not attempt.holds:
            return attempt.end("fenced")
        attempt.order.move("finalized", due=None)
        attempt.order.code = ""
        return attempt.end("finalized")

    def _take(self, attempt: Attempt, step: str, inside: str) -> bool:
        """Take one step; False: the attempt ended instead."""
        if step == "notify" and not self._tell(attempt):
            return False
        if not attempt.holds:
            attempt.end("fenced")
            return False
        refusal = self._refusal(attempt.order, step) or inside
        if not refusal:
            attempt.order.fresh = True
            self._do(attempt.order, step)
            attempt.order.steps.append(step)
            return True
        # A transaction that is rolled back leaves the progress as it was.
        self.meet(attempt, refusal)
        return False

    def _refusal(self, order: Order, step: str) -> str:
        if step == "validate" and sum(it for _, it in order.lines) != order.lot.quantity:
            return "sum_mismatch"
        if step == "create_outputs" and any(
            lot.code in _codes(order) and lot.status != "cancelled" for lot in self.lots
        ):
            return "code_taken"
        return ""

    def _do(self, order: Order, step: str) -> None:
        if step == "consume_source":
            order.lot.status = "consumed"
        elif step == "create_outputs":
            self._create_outputs(order)
        elif step == "post_ledger":
            self._publish(f"split-order:{order.number}:finalized", order.lot, _stock(order))

    def _create_outputs(self, order: Order) -> None:
        codes = _codes(order)
        for lot in self.lots:
            if lot.code in codes and lot.parent:
                lot.code = f"{lot.code}~{lot.parent.number}"
        for code, (sku, quantity) in zip(codes, order.lines, strict=True):
            self.lots.append(Lot(code, sku, quantity, order.lot.root, order))

    def _tell(self, attempt: Attempt) -> bool:
        """Call the endpoint; False: the attempt ended instead."""
        if not attempt.holds:
            attempt.end("fenced")
            return False
        attempt.order.fresh = True
        door = self.endpoint
        if door.open and not door.try_due:
            self.meet(attempt, "endpoint_down")
            return False
        door.told.append(attempt.order.number)
        on_trial, door.try_due = door.open, False
        if door.status == 503:
            door.failures += 1
            door.open = door.failures >= BREAKER_FAILURES
            self.meet(attempt, "endpoint_down" if on_trial else "endpoint_failed")
            return False
        door.failures, door.open = 0, False
        if door.status != 204:
            self.meet(attempt, "endpoint_refused")
            return False
        return True

    def meet(self, attempt: Attempt, trouble: str) -> None:
        """End the attempt by what it met: a refusal's code, or a kind of trouble."""
        order = attempt.order
        if trouble == "kill":
            return attempt.end("killed")
        if not attempt.holds:
            return attempt.end("fenced")
        if trouble in ("infrastructure", "endpoint_down", "LeaseLostError"):
            order.attempts -= 1
            order.code = trouble
            order.move("ready", due=trouble == "LeaseLostError")
            return attempt.end("postponed")
        order.code = trouble
        if attempt.number >= ATTEMPTS:
            order.move("failed", due=None, audit=FAILED)
            order.audit.append(LIMIT)
        else:
            order.move("ready", due=False, audit=FAILED)
        return attempt.end("failed")

    def recover(self, order: Order, epoch: int, *, force: bool, due: bool) -> str:
        """Reset an order that was seen stuck under ``epoch``, if it still is."""
        if order.epoch != epoch:
            return "gone"
        if force and order.status == "quarantined":
            self.release(order, due=due)
            return "released"
        if not order.running or (order.fresh and not force):
            return "gone"
        self.sightings.add((order.number, epoch))
        return self._reset(order, due=due)

    def _reset(self, order: Order, *, due: bool) -> str:
        order.epoch += 1
        order.resets += 1
        order.recent_resets += 1
        if order.recent_resets > RESETS:
            order.move("quarantined", due=None, audit=QUARANTINED)
            return "quarantined"
        if order.attempts >= ATTEMPTS:
            order.move("failed", due=None, audit=RECOVERED)
            order.audit.append(LIMIT)
            return "failed"
        order.move("ready", due=due or None, audit=RECOVERED)
        return "recovered"

    def stock(self) -> Counter[str]:
        """Return the balances once all that is published is posted."""
        total: Counter[str] = Counter()
        for _key, _aggregate, stock in self.entries:
            total.update(stock)
        return total


def _codes(order: Order) -> list[str]:
    return [f"{order.lot.code}-{line:03d}" for line in range(1, len(order.lines) + 1)]


def _stock(order: Order) -> Any:
    stock: Any = Counter({f"stock:{order.lot.sku}": -order.lot.quantity})
    for sku, quantity in order.lines:
        stock[f"stock:{sku}"] += quantity
    return stock


def _require(order: Order, status: str) -> None:
    if order.status != status:
        raise RefusedError("wrong_status")
