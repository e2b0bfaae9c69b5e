"""What happened to a split order, told from its rows: steps, records, ledger entries."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from django.db.models import Q
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext as _

from ledger.models import OutboxEntry, Transaction
from recovery.admin.secrecy import masked
from recovery.admin.tables import NOTHING, Table, link, list_of, pretty, state
from recovery.models import AuditRecord
from splits import audit
from splits.models import FinalizeStep, SplitOrder, StuckSighting

SHOWN_RECORDS = 100


@dataclass(frozen=True)
class Event:
    """One line of the timeline."""

    at: datetime
    what: Any
    who: str = ""
    details: Any = ""


class Story:
    """An order with all that is known of it; each kind of row is read once."""

    def __init__(self, order: SplitOrder, reader: Any) -> None:
        """Tell of ``order``, what ``reader`` may see."""
        self.order, self.reader = order, reader
        self.keys = (order.event_key, order.reversal_key)

    @cached_property
    def steps(self) -> list[FinalizeStep]:
        """Return the steps that are done."""
        return list(self.order.steps.order_by("id"))

    @cached_property
    def entries(self) -> list[OutboxEntry]:
        """Return the order's outbox entries."""
        entries = OutboxEntry.objects.filter(event_key__in=self.keys).defer("payload")
        return list(entries.order_by("id"))

    @cached_property
    def transactions(self) -> list[Transaction]:
        """Return the order's ledger transactions."""
        return list(Transaction.objects.filter(event_key__in=self.keys).order_by("id"))

    @cached_property
    def records(self) -> list[AuditRecord]:
        """Return the newest audit records of the order and of its outbox entries, oldest first."""
        ids = [str(entry.pk) for entry in self.entries]
        of_order = Q(target_type=audit.TARGET, target_id=self.order.number)
        of_entries = Q(target_type="outbox-entry", target_id__in=ids)
        about = (AuditRecord.objects.filter(target) for target in (of_order, of_entries))
        newest = [it for records in about for it in records.order_by("-id")[:SHOWN_RECORDS]]
        return newest[::-1]

    def timeline(self) -> Table:
        """Return all that happened, newest first."""
        # What happened in the same moment stays in the order of cause and effect.
        events = sorted(self._events(), key=lambda event: event.at)
        return Table(
            title=_("Timeline"),
            columns=(_("At"), _("What"), _("Who"), _("Details")),
            rows=[(it.at, it.what, it.who, it.details) for it in reversed(events)],
            empty="",
            note=_("Newest first."),
            more=(
                list_of(AuditRecord, q=f"{audit.TARGET}/{self.order.number}"),
                _("All audit records"),
            ),
        )

    def ledger(self) -> Table:
        """Return the order's ledger entries and transactions."""
        return Table(
            title=_("Ledger"),
            columns=(_("Event key"), _("Outbox entry"), _("Transaction"), _("Reason")),
            rows=list(self._ledger_rows()),
            empty=_("Nothing yet: the step “post ledger” publishes it."),
        )

    def _ledger_rows(self) -> Iterator[tuple[Any, ...]]:
        entries = {it.event_key: it for it in self.entries}
        transactions = {it.event_key: it for it in self.transactions}
        for key in self.keys:
            entry, transaction = entries.get(key), transactions.get(key)
            if entry or transaction:
                yield (
                    key,
                    _stands(entry) if entry else NOTHING,
                    link(transaction, _("posted")) if transaction else NOTHING,
                    entry.get_last_error_code_display() if entry else NOTHING,
                )

    def _events(self) -> Iterator[Event]:
        yield Event(self.order.created_at, _("created"))
        for entry in self.entries:
            what = link(entry, _("published to the outbox"))
            yield Event(entry.created_at, what, details=entry.event_key)
        yield from self._finalizing()
        for record in self.records:
            what = link(record, record.action)
            yield Event(record.at, what, record.actor, _details(record, self.reader))
        for transaction in self.transactions:
            what = link(transaction, _("posted to the ledger"))
            yield Event(transaction.posted_at, what, details=transaction.event_key)

    def _finalizing(self) -> Iterator[Event]:
        order = self.order
        if order.finalize_in_progress and order.finalize_started_at:
            what = _("attempt %(number)d began") % {"number": order.finalize_attempts}
            yield Event(order.finalize_started_at, what, order.finalize_owner)
        for step in self.steps:
            what = _("step done: %(step)s") % {"step": step.get_name_display()}
            yield Event(step.completed_at, what, details=_("epoch %(n)d") % {"n": step.epoch})
        for sighting in StuckSighting.objects.filter(order_ref=order.pk).order_by("id"):
            details = _("epoch %(n)d") % {"n": sighting.epoch}
            yield Event(sighting.seen_at, state("late", _("found stuck")), details=details)
            if sighting.held_at:
                what = state("late", _("held by a live transaction"))
                held_by = pretty(masked(sighting.held_by, self.reader))
                yield Event(sighting.held_at, what, details=held_by)
        if order.finalized_at:
            yield Event(order.finalized_at, state("finalized", _("finalized")))


def _stands(entry: OutboxEntry) -> Any:
    return format_html("{} {}", link(entry, entry.pk), state(entry.status, _status(entry)))


def _status(entry: OutboxEntry) -> str:
    return str(entry.get_status_display())


def _details(record: AuditRecord, reader: Any) -> Any:
    """Return reason, what changed, and the evidence of a record."""
    before, after = masked(record.before, reader), masked(record.after, reader)
    parts = [record.reason, _changes(before, after)]
    if record.evidence:
        summary, evidence = _("Evidence"), pretty(masked(record.evidence, reader))
        parts.append(format_html("<details><summary>{}</summary>{}</details>", summary, evidence))
    return format_html_join("", "<div>{}</div>", ((part,) for part in parts if part))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the facts that differ, as ``name: before → after``."""
    names = [name for name in after if before.get(name) != after[name]]
    return "; ".join(f"{name}: {_fact(before.get(name))} → {_fact(after[name])}" for name in names)


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
