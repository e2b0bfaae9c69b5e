"""Close, reopen and correct accounts, on the record."""

from decimal import Decimal
from typing import Any

from django.db import transaction

from ledger.models import Account, Posting
from ledger.outbox import quantity_text
from recovery import audit
from recovery.fields import KEY_MAX_LENGTH
from recovery.models import stored_text
from recovery.sqlite import ExactSum

TARGET = "account"
CLOSED = "account-closed"
REOPENED = "account-reopened"
CORRECTED = "account-balance-corrected"


def close(code: str, unit: str, *, actor: str, reason: str) -> bool:
    """Close an account: it takes no further postings. False: it is closed, or there is none."""
    return _change(code, unit, action=CLOSED, actor=actor, reason=reason)


def reopen(code: str, unit: str, *, actor: str, reason: str) -> bool:
    """Open a closed account again. False: it is open, or there is none."""
    return _change(code, unit, action=REOPENED, actor=actor, reason=reason)


def correct(code: str, unit: str, *, actor: str, reason: str) -> bool:
    """Let an account's balance be the sum of its postings. False: it is, or there is no account.

    Its row is locked while its postings are added up: batches that post to it wait.
    """
    this = Account.objects.filter(code=code, unit=unit)
    with transaction.atomic():
        before = this.select_for_update().first()
        if before is None:
            return False
        postings = Posting.objects.filter(account=before).order_by()
        total = postings.aggregate(total=ExactSum("quantity"))["total"] or Decimal(0)
        if before.balance == total:
            return False
        this.correct(total)
        audit.record(
            actor=actor,
            action=CORRECTED,
            target_type=TARGET,
            target_id=target_id(before),
            reason=reason,
            before={"balance": quantity_text(before.balance)},
            after={"balance": quantity_text(total)},
            evidence={"code": code, "unit": unit, "postings": postings.count()},
        )
    return True


def target_id(account: Account) -> str:
    """Return what audit records call ``account``: ``<code> [<unit>]``, cut where it is too long."""
    return stored_text(str(account), KEY_MAX_LENGTH)


def _change(code: str, unit: str, *, action: str, actor: str, reason: str) -> bool:
    this = Account.objects.filter(code=code, unit=unit)
    with transaction.atomic():
        # Locked, so that the record says what was; a batch that posts to it is waited for.
        before = this.select_for_update().first()
        changed = this.close() if action == CLOSED else this.reopen()
        if before is None or not changed:
            return False
        after = this.get()
        audit.record(
            actor=actor,
            action=action,
            target_type=TARGET,
            target_id=target_id(after),
            reason=reason,
            before=_facts(before),
            after=_facts(after),
            evidence={"code": code, "unit": unit, "balance": quantity_text(after.balance)},
        )
    return True


def _facts(account: Account) -> dict[str, Any]:
    closed_at = account.closed_at
    return {"closed_at": closed_at.isoformat() if closed_at else None}
