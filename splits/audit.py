"""Audit records of split orders and lots: what they show of an order, and under which actions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from recovery import audit
from splits.models import SplitOrder

TARGET = "split-order"

RECOVERED = "split-order-finalize-stuck-recovered"
FAILED = "split-order-finalize-failed"
RETRY_LIMIT = "split-order-finalize-retry-limit"
QUARANTINED = "split-order-quarantined"
RELEASED = "split-order-released"
RETRIED = "split-order-retried"
CANCELLED = "split-order-cancelled"
REVERSED = "split-order-reversed"
LOT_TARGET = "lot"
LOT_CORRECTED = "lot-corrected"
AUDITED = (RECOVERED, FAILED, RETRY_LIMIT, QUARANTINED, RELEASED, RETRIED, CANCELLED, REVERSED)


@dataclass(frozen=True)
class Author:
    """Who changes an order, and why."""

    actor: str
    reason: str = ""
    run_id: UUID | None = None
    plan_id: int | None = None
    """The operators' plan within which it is done."""

    def evidence(self) -> dict[str, Any]:
        """Return what each record says of the plan."""
        return {} if self.plan_id is None else {"plan": self.plan_id}


def facts(order: SplitOrder) -> dict[str, Any]:
    """Return what a record shows of ``order`` before and after the change."""
    next_at = order.next_finalize_at
    return {
        "status": order.status,
        "in_progress": order.finalize_in_progress,
        "epoch": order.finalize_epoch,
        "attempts": order.finalize_attempts,
        "recoveries": order.recovery_count,
        "next_finalize_at": next_at.isoformat() if next_at else None,
    }


def record(
    before: SplitOrder,
    action: str,
    *,
    author: Author,
    cause: str = "",
    evidence: Mapping[str, Any] | None = None,
) -> SplitOrder:
    """Write one record of a change made to the order read as ``before``; return it as it is now.

    ``cause`` is the reason where the author gives none.
    """
    after = SplitOrder.objects.get(pk=before.pk)
    audit.record(
        actor=author.actor,
        action=action,
        target_type=TARGET,
        target_id=before.number,
        reason=author.reason or cause,
        before=facts(before),
        after=facts(after),
        evidence={**(evidence or {}), **author.evidence()},
        run_id=author.run_id,
    )
    return after
