"""Where each story of the demo stands, by the rows that the product itself wrote."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from django.db.models import Q

from ledger import accounts
from ledger.models import Account, EntryStatus, OutboxEntry
from recovery.models import AuditRecord
from splits import audit
from splits.demo.boards import board_of
from splits.demo.environment import BREAKER_FAILURES
from splits.errors import EndpointDownError, EndpointFailedError
from splits.models import Breaker, FinalizeStep, OrderStatus, SplitOrder

CLOSED_SKU, CLOSED_UNIT = "SHEET-300x300", "mm2"
CLOSED_ACCOUNT = f"stock:{CLOSED_SKU}"
DEAD = "outbox-entry-dead"
NEWEST = 40
"""More than the orders of a take, so that what is newest is whole."""
NUMBER = re.compile(r"DEMO-(?P<take>\d+)-(?P<role>CLOSED|OTHER|NOTIFY|KILLED)(-\d+)?")


class Role(StrEnum):
    """The part an order of the stories plays; its number tells."""

    CLOSED = "CLOSED"
    OTHER = "OTHER"
    NOTIFY = "NOTIFY"
    KILLED = "KILLED"


class State(StrEnum):
    """How far a story is."""

    WAITING = "waiting"
    UNDER_WAY = "under_way"
    PLAYED = "played"
    OTHERWISE = "otherwise"
    """It ended, but not as it is told: somebody took a hand in it, or it was cut short."""


def number_of(take: int, role: Role, nth: int | None = None) -> str:
    """Return the number of an order: ``DEMO-<take>-<role>``, ``-<nth>`` where there are several."""
    return f"DEMO-{take}-{role}" + (f"-{nth}" if nth else "")


@dataclass(frozen=True)
class ClosedAccount:
    """Story 1: a board whose stock account was closed."""

    take: int = 0
    account: Account | None = None
    closing: AuditRecord | None = None
    """The newest record of the account's closing."""
    order: SplitOrder | None = None
    other: SplitOrder | None = None
    receipt: OutboxEntry | None = None
    movement: OutboxEntry | None = None
    other_movement: OutboxEntry | None = None
    death: AuditRecord | None = None

    @property
    def state(self) -> State:
        """Return how far it is."""
        if self.order is None or self.receipt is None:
            return State.WAITING
        if self.death:
            done = self.waits_behind and self.others_go_on
            return State.PLAYED if done or not self.holds_back else State.UNDER_WAY
        return State.UNDER_WAY if self.holds_back else State.OTHERWISE

    @property
    def holds_back(self) -> bool:
        """Tell whether the receipt is not posted, nor given up."""
        return bool(self.receipt and self.receipt.holds_back())

    @property
    def waits_behind(self) -> bool:
        """Tell whether the order is finalized, and its movement waits for the receipt."""
        is_final = self.order and self.order.status == OrderStatus.FINALIZED
        waits = self.movement and self.movement.status == EntryStatus.PENDING
        return bool(is_final and waits)

    @property
    def others_go_on(self) -> bool:
        """Tell whether the order beside it is finalized and posted."""
        is_final = self.other and self.other.status == OrderStatus.FINALIZED
        return bool(is_final and is_posted(self.other_movement))


@dataclass(frozen=True)
class DeafEndpoint:
    """Story 2: orders that cannot tell the outside."""

    take: int = 0
    orders: Sequence[SplitOrder] = ()
    failures: Sequence[AuditRecord] = ()
    breaker: Breaker | None = None
    movements: Sequence[OutboxEntry] = ()

    @property
    def state(self) -> State:
        """Return how far it is."""
        if not self.orders:
            return State.WAITING
        if len(self.finalized) < len(self.orders):
            return State.UNDER_WAY
        return State.PLAYED if self.was_opened else State.OTHERWISE

    @property
    def finalized(self) -> list[SplitOrder]:
        """Return the orders that are finalized."""
        return [order for order in self.orders if order.status == OrderStatus.FINALIZED]

    @property
    def was_opened(self) -> bool:
        """Tell whether so many calls failed that the breaker opened."""
        return len(self.failures) >= BREAKER_FAILURES

    @property
    def is_open(self) -> bool:
        """Tell whether the breaker is open."""
        return bool(self.breaker and self.breaker.opened_at)

    @property
    def uncharged(self) -> list[SplitOrder]:
        """Return the orders that the breaker turned away, which costs no attempt."""
        code = EndpointDownError.code
        return [order for order in self.orders if order.last_finalize_error_code == code]


@dataclass(frozen=True)
class KilledFinalizer:
    """Story 3: an order whose finalizer was killed."""

    take: int = 0
    order: SplitOrder | None = None
    steps: Sequence[FinalizeStep] = ()
    recovery: AuditRecord | None = None
    movement: OutboxEntry | None = None

    @property
    def state(self) -> State:
        """Return how far it is."""
        if self.order is None or self.order.status == OrderStatus.DRAFT:
            return State.WAITING
        if self.order.status != OrderStatus.FINALIZED:
            return State.UNDER_WAY
        if self.recovery is None:
            return State.OTHERWISE
        return State.PLAYED if is_posted(self.movement) else State.UNDER_WAY

    @property
    def hangs(self) -> bool:
        """Tell whether the order is in progress and nobody has reset it yet."""
        in_progress = self.order and self.order.finalize_in_progress
        return bool(in_progress and self.recovery is None)


@dataclass(frozen=True)
class Scenes:
    """All three."""

    closed: ClosedAccount
    deaf: DeafEndpoint
    killed: KilledFinalizer


def is_posted(entry: OutboxEntry | None) -> bool:
    """Tell whether there is an entry and it is posted."""
    return entry is not None and entry.status == EntryStatus.POSTED


def read(endpoint: str) -> Scenes:
    """Return where the newest take of each story stands: six statements, all by index.

    ``endpoint`` names the breaker of the completion endpoint: its scheme, host and port.
    """
    cast = _cast()
    everybody = [order for orders in cast.values() for order in orders]
    entries = _entries(everybody)
    records = _records(everybody, entries)
    return Scenes(
        _closed(cast, entries, records),
        _deaf(cast, entries, records, endpoint),
        _killed(cast, entries, records),
    )


def own_dead_entries() -> list[OutboxEntry]:
    """Return the dead entries that the stories are about."""
    keys = _receipt_key(number_of(0, Role.CLOSED)).split("0", 1)
    dead = OutboxEntry.objects.dead().filter(event_key__startswith=keys[0])
    return list(dead.filter(event_key__endswith=keys[1]).order_by("pk"))


Cast = Mapping[Role, Sequence[SplitOrder]]
Entries = Mapping[str, OutboxEntry]
Records = Sequence[AuditRecord]


def take_of(order: SplitOrder) -> int:
    """Return which take of its story the order was made for."""
    found = NUMBER.fullmatch(order.number)
    return int(found["take"]) if found else 0


def _cast() -> Cast:
    """Return the orders of the newest take of each role, the oldest first."""
    orders = SplitOrder.objects.filter(number__gte="DEMO-", number__lt="DEMO.")
    cast: defaultdict[Role, list[SplitOrder]] = defaultdict(list)
    for order in orders.select_related("source_lot").order_by("-pk")[:NEWEST]:
        found = NUMBER.fullmatch(order.number)
        if not found:
            continue
        others = cast[Role(found["role"])]
        if not others or take_of(others[0]) == take_of(order):
            others.insert(0, order)
    return cast


def _receipt_key(number: str) -> str:
    return f"lot:{board_of(number)}:received"


def _entries(orders: Iterable[SplitOrder]) -> Entries:
    keys = [key for order in orders for key in (order.event_key, _receipt_key(order.number))]
    found = OutboxEntry.objects.filter(event_key__in=keys).defer("payload")
    return {entry.event_key: entry for entry in found}


def _records(orders: Iterable[SplitOrder], entries: Entries) -> Records:
    """Return what was audited of these orders and entries and the account, the oldest first."""
    numbers = [order.number for order in orders]
    ids = [str(entry.pk) for entry in entries.values()]
    of_orders = Q(target_type=audit.TARGET, target_id__in=numbers)
    deaths = Q(target_type="outbox-entry", target_id__in=ids, action=DEAD)
    account = f"{CLOSED_ACCOUNT} [{CLOSED_UNIT}]"
    closings = Q(target_type=accounts.TARGET, target_id=account, action=accounts.CLOSED)
    found = AuditRecord.objects.filter(of_orders | deaths | closings)
    return list(found.order_by("pk"))


def _closed(cast: Cast, entries: Entries, records: Records) -> ClosedAccount:
    account = Account.objects.filter(code=CLOSED_ACCOUNT, unit=CLOSED_UNIT).first()
    closing = next((it for it in reversed(records) if it.action == accounts.CLOSED), None)
    order = next(iter(cast[Role.CLOSED]), None)
    if order is None:
        return ClosedAccount(account=account, closing=closing)
    other = next((it for it in cast[Role.OTHER] if take_of(it) == take_of(order)), None)
    receipt = entries.get(_receipt_key(order.number))
    deaths = [
        it for it in records if receipt and it.action == DEAD and it.target_id == str(receipt.pk)
    ]
    return ClosedAccount(
        take=take_of(order),
        account=account,
        closing=closing,
        order=order,
        other=other,
        receipt=receipt,
        movement=entries.get(order.event_key),
        other_movement=entries.get(other.event_key) if other else None,
        death=next(iter(deaths), None),
    )


def _deaf(cast: Cast, entries: Entries, records: Records, endpoint: str) -> DeafEndpoint:
    orders = cast[Role.NOTIFY]
    numbers = {order.number for order in orders}
    return DeafEndpoint(
        take=take_of(orders[0]) if orders else 0,
        orders=orders,
        failures=[
            it
            for it in records
            if it.target_id in numbers
            and it.action == audit.FAILED
            and it.evidence.get("code") == EndpointFailedError.code
        ],
        breaker=Breaker.objects.filter(endpoint=endpoint).first(),
        movements=[entries[it.event_key] for it in orders if it.event_key in entries],
    )


def _killed(cast: Cast, entries: Entries, records: Records) -> KilledFinalizer:
    order = next(iter(reversed(cast[Role.KILLED])), None)
    if order is None:
        return KilledFinalizer()
    recoveries = [
        it for it in records if it.target_id == order.number and it.action == audit.RECOVERED
    ]
    return KilledFinalizer(
        take=take_of(order),
        order=order,
        steps=list(FinalizeStep.objects.filter(order=order).order_by("pk")),
        recovery=next(iter(recoveries), None),
        movement=entries.get(order.event_key),
    )
