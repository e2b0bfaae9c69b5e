"""Proofs that several drills make."""

from typing import Any

from ledger.models import EntryStatus, OutboxEntry, Transaction
from ledger.outbox import JOB
from recovery.models import AuditRecord
from splits import audit
from splits.drills.exercise import Exercise
from splits.finalize import Ending, finalize
from splits.models import OrderStatus, SplitOrder


def prove_audited(exercise: Exercise, action: str, *, kind: str, target: str) -> AuditRecord:
    """Prove that a change is on the record; return the newest such record."""
    record = AuditRecord.objects.filter(target_type=kind, target_id=target, action=action).first()
    exercise.prove(f"audit record {action}", record)
    assert record is not None  # noqa: S101 - proven a line above
    exercise.evidence.setdefault("audit_records", {})[action] = record.pk
    return record


def prove_order_audited(exercise: Exercise, order: SplitOrder, action: str) -> AuditRecord:
    """Prove that a change of ``order`` is on the record."""
    return prove_audited(exercise, action, kind=audit.TARGET, target=order.number)


def finalize_here(exercise: Exercise, order: SplitOrder, what: str) -> None:
    """Finalize the order in this process and prove it."""
    outcome = finalize(order.pk, author=exercise.author, now=True)
    ended = outcome.ending if outcome else "somebody else has it"
    exercise.prove(what, ended == Ending.FINALIZED, finalized=str(ended))


def is_finalized(order: SplitOrder) -> bool:
    """Tell whether the order is finalized."""
    order.refresh_from_db()
    return order.status == OrderStatus.FINALIZED


def prove_posted_once(exercise: Exercise, order: SplitOrder) -> None:
    """Wait until the order is in the ledger, and prove that it is there once."""
    entries = OutboxEntry.objects.filter(event_key=order.event_key)
    exercise.work(
        JOB,
        "its movement is posted",
        lambda: entries.filter(status=EntryStatus.POSTED).exists(),
    )
    facts = _ledger_facts(order)
    once = facts["transactions"] == 1 and facts["postings"] == 1 + order.lines.count()
    exercise.prove("it is in the ledger once", once, ledger=facts)


def _ledger_facts(order: SplitOrder) -> dict[str, Any]:
    posted = Transaction.objects.filter(event_key=order.event_key)
    postings = sum(transaction.postings.count() for transaction in posted)
    return {"event_key": order.event_key, "transactions": len(posted), "postings": postings}
