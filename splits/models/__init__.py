"""Rows of split orders: lots, orders, lines, steps, and the breaker of the endpoint."""

from splits.models.breaker import Breaker
from splits.models.lots import Lot, LotStatus
from splits.models.orders import LineKind, SplitLine, SplitOrder
from splits.models.progress import FinalizeStep, StepName, StuckSighting
from splits.models.transitions import OrderStatus, SplitOrderQuerySet

__all__ = [
    "Breaker",
    "FinalizeStep",
    "LineKind",
    "Lot",
    "LotStatus",
    "OrderStatus",
    "SplitLine",
    "SplitOrder",
    "SplitOrderQuerySet",
    "StepName",
    "StuckSighting",
]
