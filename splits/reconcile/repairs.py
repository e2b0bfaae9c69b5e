"""Repair what was found where one thing alone can be meant, on the record."""

import re
from collections.abc import Callable, Mapping

from django.db import transaction

from ledger import accounts
from recovery import audit
from splits.audit import LOT_CORRECTED, LOT_TARGET, Author
from splits.models import Lot, LotStatus, SplitOrder
from splits.reconcile.ledger import ACCOUNT_PREFIX, BALANCE_DIFFERS, LOT_PREFIX, ORDER_PREFIX
from splits.reconcile.lots import CONSUMED_BY_NOBODY, consumed_by_orders
from splits.reconcile.orders import NOT_CONSUMED, facts_of

ACCOUNT = re.compile(r"(?P<code>.+) \[(?P<unit>.+)\]")


class NotFoundError(Exception):
    """It is not so, or not any more: nothing was changed."""


class WrongTargetError(ValueError):
    """The finding is of no such kind, or about something else."""


def repair(kind: str, target: str, *, author: Author) -> None:
    """Repair what reconcile calls ``kind`` of ``target``, looking anew under its row's lock.

    Raises WrongTargetError, NotFoundError.
    """
    if kind not in REPAIRS:
        raise WrongTargetError(f"{kind} is repaired by hand; these are not: {', '.join(REPAIRS)}")
    prefix, mend = REPAIRS[kind]
    if not target.startswith(prefix):
        raise WrongTargetError(f"{kind} is about {prefix}…, not {target}")
    if not mend(target.removeprefix(prefix), author):
        raise NotFoundError(f"{kind} {target}: {NotFoundError.__doc__}")


@transaction.atomic
def _free(code: str, author: Author) -> bool:
    """Make a lot available that no order has consumed."""
    lot = Lot.objects.filter(code=code).locked().first()
    if lot is None or lot.status != LotStatus.CONSUMED or consumed_by_orders([lot.pk]):
        return False
    return _correct(lot, LotStatus.AVAILABLE, author, CONSUMED_BY_NOBODY)


@transaction.atomic
def _consume(number: str, author: Author) -> bool:
    """Consume the source lot of an order that has gone on from it."""
    lot = Lot.objects.filter(split_orders__number=number).locked().first()
    order = SplitOrder.objects.select_related("source_lot").filter(number=number).first()
    if lot is None or order is None or lot.status != LotStatus.AVAILABLE:
        return False
    facts = facts_of([order])[order.pk]
    return facts.has_consumed and _correct(lot, LotStatus.CONSUMED, author, NOT_CONSUMED, number)


def _correct(lot: Lot, status: LotStatus, author: Author, kind: str, order: str = "") -> bool:
    """Correct a locked lot; False: it has changed nevertheless."""
    before = LotStatus(lot.status)
    if not Lot.objects.filter(pk=lot.pk).correct(before, status):
        return False
    audit.record(
        actor=author.actor,
        action=LOT_CORRECTED,
        target_type=LOT_TARGET,
        target_id=lot.code,
        reason=author.reason,
        before={"status": before},
        after={"status": status},
        evidence={"finding": kind, "order": order},
    )
    return True


def _balance(name: str, author: Author) -> bool:
    """Let a balance be the sum of the account's postings."""
    named = ACCOUNT.fullmatch(name)
    if named is None:
        raise WrongTargetError(f"{ACCOUNT_PREFIX}{name} is not {ACCOUNT_PREFIX}CODE [UNIT]")
    return accounts.correct(**named.groupdict(), actor=author.actor, reason=author.reason)


REPAIRS: Mapping[str, tuple[str, Callable[[str, Author], bool]]] = {
    CONSUMED_BY_NOBODY: (LOT_PREFIX, _free),
    NOT_CONSUMED: (ORDER_PREFIX, _consume),
    BALANCE_DIFFERS: (ACCOUNT_PREFIX, _balance),
}
"""By the kind of finding: what its target begins with, and what mends it; False: it was not so."""
