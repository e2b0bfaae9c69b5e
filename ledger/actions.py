"""What operators may do to dead outbox entries: redrive, edit, discard."""

import difflib
import json
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from ledger import dlq, parking, payloads
from ledger.models import EntryStatus, OutboxEntry, Transaction
from ledger.outbox import JOB, canonical, content_hash
from ledger.rows import DIED
from recovery import audit
from recovery.actions import (
    Action,
    By,
    RefusedError,
    Seen,
    Sight,
    Target,
    WrongParametersError,
    action,
    moment,
)
from recovery.clock import seconds_from_now
from recovery.wakeups import wake_on_commit

TARGET = "outbox-entry"
DEAD = "outbox-entry-dead"
REDRIVEN = "outbox-entry-redriven"
EDITED = "outbox-entry-edited"
DISCARDED = "outbox-entry-discarded"
RESTORED = "outbox-entry-restored"
AUDITED = (DEAD, REDRIVEN, EDITED, DISCARDED, RESTORED)

COUNTED = 1_000
"""So many later entries are counted at most."""
WAITS_FROM_S = 10
"""An entry that is not tried for so long waits for something else than a worker."""


class EntryAction(Action[OutboxEntry]):
    """Something that may be done to a dead entry."""

    target_type = TARGET
    key_name = "ID"

    def rows(self) -> "QuerySet[OutboxEntry]":
        """Return entries without their payload."""
        return OutboxEntry.objects.defer("payload")

    def candidates(self, parameters: Mapping[str, Any]) -> "QuerySet[OutboxEntry]":
        """Return the DLQ."""
        return OutboxEntry.objects.dead().defer("payload")

    def find(self, keys: Sequence[str]) -> tuple[list[int], list[str]]:
        """Return entries by id or event key."""
        numbers = [int(key) for key in keys if _is_id(key)]
        known = set(OutboxEntry.objects.filter(pk__in=numbers).values_list("pk", flat=True))
        names = dict(
            OutboxEntry.objects.filter(event_key__in=list(keys)).values_list("event_key", "pk")
        )
        found, unknown = [], []
        for key in keys:
            number = int(key) if _is_id(key) else None
            pk = number if number in known else names.get(key)
            if pk is None:
                unknown.append(key)
            else:
                found.append(pk)
        return found, unknown

    def label(self, row: OutboxEntry) -> str:
        """Return the event key."""
        return row.event_key

    def target_id(self, row: OutboxEntry) -> str:
        """Return the id."""
        return str(row.pk)

    def state(self, row: OutboxEntry) -> dict[str, Any]:
        """Return what an attempt, a redrive or an edit changes."""
        return {
            "status": row.status,
            "attempts": row.attempts,
            "code": row.last_error_code,
            "next_attempt_at": moment(row.next_attempt_at),
            "content_hash": row.content_hash,
        }

    def misfit(self, row: OutboxEntry, parameters: Mapping[str, Any]) -> str:
        """Refuse all but the dead."""
        if row.status == EntryStatus.DEAD:
            return ""
        return _("it is %(status)s, not dead") % {"status": row.get_status_display()}

    def apply(self, row: OutboxEntry, by: By) -> str:
        """Change the entry, take it out of the files where it lives, write the record."""
        misfit = self.misfit(row, by.parameters)
        if misfit:
            raise RefusedError(misfit)
        before = facts(row)
        evidence = self._change(row, by)
        _record(self.audit_action, row, by, before=before, after=facts(row), evidence=evidence)
        return self.audit_action.rpartition("-")[2]

    @abstractmethod
    def _change(self, row: OutboxEntry, by: By) -> dict[str, Any]:
        """Change the dead entry, and ``row`` with it; return what the record says besides."""


def _is_id(key: str) -> bool:
    return key.isdecimal() and int(key) < 2**63


def facts(row: OutboxEntry) -> dict[str, Any]:
    """Return what a record shows of an entry before and after a change."""
    return {
        "status": row.status,
        "attempts": row.attempts,
        "code": row.last_error_code,
        "content_hash": row.content_hash,
    }


def _record(
    action: str,
    row: OutboxEntry,
    by: By,
    *,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    evidence: Mapping[str, Any],
) -> None:
    audit.record(
        actor=by.actor,
        action=action,
        target_type=TARGET,
        target_id=str(row.pk),
        reason=by.reason,
        before=before,
        after=after,
        evidence={"event_key": row.event_key, **evidence, **by.evidence()},
        run_id=by.run_id,
    )


def _redrive(row: OutboxEntry) -> None:
    """Give a dead entry fresh attempts, in the table and in ``row``."""
    if not OutboxEntry.objects.filter(pk=row.pk).redrive():
        raise RefusedError(_("it is not dead any more"))
    row.status, row.attempts, row.last_error_code = EntryStatus.PENDING, 0, ""
    _let_go_on(row)


def _let_go_on(row: OutboxEntry) -> None:
    """Let the aggregate go on: the entry out of the files, its parked followers due."""
    dlq.take_out([row.pk])
    if parking.release_some(row.aggregate) >= parking.AT_ONCE:
        # The others not in this transaction; after a crash they come when they are due anyway.
        transaction.on_commit(partial(parking.release, [row.aggregate]), robust=True)
    wake_on_commit(JOB)


@action
class Redrive(EntryAction):
    """Fresh attempts, due at once."""

    name = "outbox.redrive"
    summary = "Give dead entries fresh attempts, due at once."
    permission = "ledger.redrive_outboxentry"
    audit_action = REDRIVEN
    followed_job = JOB

    def misfits(
        self, rows: Sequence[OutboxEntry], parameters: Mapping[str, Any], chosen: Collection[int]
    ) -> dict[int, str]:
        """Leave out also what would wait behind an entry that is not redriven with it."""
        found = super().misfits(rows, parameters, chosen)
        for pk, (head, status) in dlq.barriers(rows).items():
            if head not in chosen and status == EntryStatus.DEAD:
                text = _("it would wait for entry %(head)d before it, which is dead")
                found.setdefault(pk, text % {"head": head})
        return found

    def becomes(self, row: OutboxEntry, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a redrive changes."""
        return {"status": EntryStatus.PENDING.value, "attempts": 0, "code": ""}

    def _change(self, row: OutboxEntry, by: By) -> dict[str, Any]:
        why = {"code": row.last_error_code, "error": row.last_error}
        _redrive(row)
        return why

    def after(self, row: OutboxEntry) -> dict[str, Any]:
        """Return what every redriven entry is."""
        return {"status": EntryStatus.PENDING.value, "attempts": 0}

    def look(self, targets: Sequence[Target]) -> dict[int, Seen]:
        """Return how the first attempt since the redrive ended."""
        found = OutboxEntry.objects.filter(pk__in=[it.row_id for it in targets])
        waits = found.parked().filter(next_attempt_at__gt=seconds_from_now(WAITS_FROM_S))
        waiting = set(waits.values_list("pk", flat=True))
        rows = {it.pk: it for it in found.defer("payload")}
        gone = Seen(Sight.GOOD, "it is gone: posted and past its retention")
        return {
            it.row_id: _seen(rows[it.row_id], it.row_id in waiting) if it.row_id in rows else gone
            for it in targets
        }

    def put_back(self, row_id: int, by: By) -> bool:
        """Let an entry that failed again be dead again, on the record."""
        row = self.lock(row_id)
        if row is None or not OutboxEntry.objects.filter(pk=row_id).put_back():
            return False
        dlq.file([(row.pk, row.last_error_code, row.last_error)])
        evidence = {"code": row.last_error_code, "error": row.last_error, "put_back": True}
        after = {**facts(row), "status": EntryStatus.DEAD.value}
        _record(DEAD, row, by, before=facts(row), after=after, evidence=evidence)
        return True


def _seen(row: OutboxEntry, waits: bool) -> Seen:
    if row.status in (EntryStatus.POSTED, EntryStatus.DISCARDED):
        return Seen(Sight.GOOD, row.status)
    being_tried = row.last_error == DIED and row.attempts <= 1
    if row.status == EntryStatus.PENDING and (not row.attempts or being_tried):
        note = "it waits for an earlier entry, or for newer code"
        return Seen(Sight.GOOD, note) if waits else Seen(Sight.UNKNOWN)
    return Seen(Sight.BAD, f"{row.last_error_code}: {row.last_error}")


@action
class Discard(EntryAction):
    """Given up for good: never posted, its followers go on."""

    name = "outbox.discard"
    summary = "Give dead entries up for good; what waits behind them goes on."
    permission = "ledger.discard_outboxentry"
    audit_action = DISCARDED

    def becomes(self, row: OutboxEntry, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a discard changes."""
        return {"status": EntryStatus.DISCARDED.value}

    def _change(self, row: OutboxEntry, by: By) -> dict[str, Any]:
        if not OutboxEntry.objects.filter(pk=row.pk).discard():
            raise RefusedError(_("it is not dead any more"))
        row.status = EntryStatus.DISCARDED
        _let_go_on(row)
        return {"code": row.last_error_code, "error": row.last_error}


@action
class Restore(EntryAction):
    """Taken back from what was given up: dead again, to be looked at, edited or redriven."""

    name = "outbox.restore"
    summary = "Take discarded entries back into the DLQ."
    permission = "ledger.restore_outboxentry"
    audit_action = RESTORED

    def candidates(self, parameters: Mapping[str, Any]) -> "QuerySet[OutboxEntry]":
        """Return the discarded entries."""
        return OutboxEntry.objects.discarded().defer("payload")

    def misfit(self, row: OutboxEntry, parameters: Mapping[str, Any]) -> str:
        """Refuse all but the discarded."""
        if row.status == EntryStatus.DISCARDED:
            return ""
        return _("it is %(status)s, not discarded") % {"status": row.get_status_display()}

    def misfits(
        self, rows: Sequence[OutboxEntry], parameters: Mapping[str, Any], chosen: Collection[int]
    ) -> dict[int, str]:
        """Refuse also what the ledger has by now: it could only be a duplicate or a conflict."""
        found = super().misfits(rows, parameters, chosen)
        keys = {row.event_key: row.pk for row in rows}
        posted = Transaction.objects.filter(event_key__in=keys)
        for key in posted.values_list("event_key", flat=True):
            found.setdefault(keys[key], _("the ledger has a transaction of this key"))
        return found

    def becomes(self, row: OutboxEntry, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a restoring changes, and what it means for later ones of the aggregate."""
        return {"status": EntryStatus.DEAD.value, **_behind(row)}

    def _change(self, row: OutboxEntry, by: By) -> dict[str, Any]:
        if Transaction.objects.filter(event_key=row.event_key).exists():
            raise RefusedError(_("the ledger has a transaction of this key"))
        if not OutboxEntry.objects.filter(pk=row.pk).restore():
            raise RefusedError(_("it is not discarded any more"))
        row.status = EntryStatus.DEAD
        dlq.file([(row.pk, row.last_error_code, row.last_error)])
        return {"code": row.last_error_code, "error": row.last_error, **_behind(row)}


def _behind(row: OutboxEntry) -> dict[str, int]:
    """Return how many later entries of the aggregate wait, and how many were posted already."""
    later = OutboxEntry.objects.filter(aggregate=row.aggregate, pk__gt=row.pk).order_by()
    return {
        "holds_back": later.filter(status=EntryStatus.PENDING)[:COUNTED].count(),
        "later_posted": later.filter(status=EntryStatus.POSTED)[:COUNTED].count(),
    }


@action
class Edit(EntryAction):
    """Other content under the same key, so that nothing can post twice; and then a redrive."""

    name = "outbox.edit"
    summary = "Change the payload of a dead entry in place, and redrive it."
    permission = "ledger.edit_outboxentry"
    audit_action = EDITED
    parameter_names: ClassVar = ("payload", "redrive")

    def checked(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the payload in its canonical form and whether to redrive.

        Raises RefusedError: editing is off; WrongParametersError: the payload cannot be posted.
        """
        if not settings.DLQ_EDIT_ENABLED:
            raise RefusedError(_("editing is off: set DLQ_EDIT_ENABLED=true to allow it"))
        kept = super().checked(parameters)
        payload = _checked_payload(kept.get("payload"))
        return {"payload": payload, "redrive": bool(kept.get("redrive", True))}

    def misfits(
        self, rows: Sequence[OutboxEntry], parameters: Mapping[str, Any], chosen: Collection[int]
    ) -> dict[int, str]:
        """Refuse more than one entry: a payload is of one."""
        if len(chosen) > 1:
            raise WrongParametersError(_("one payload is for one entry: edit one at a time"))
        return super().misfits(rows, parameters, chosen)

    def misfit(self, row: OutboxEntry, parameters: Mapping[str, Any]) -> str:
        """Refuse also what would change nothing."""
        misfit = super().misfit(row, parameters)
        if not misfit and self._hash(row, parameters) == row.content_hash:
            return _("it has this payload already: redrive it")
        return misfit

    @staticmethod
    def _hash(row: OutboxEntry, parameters: Mapping[str, Any]) -> str:
        return content_hash(row.event_type, row.aggregate, parameters["payload"])

    def becomes(self, row: OutboxEntry, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an edit changes, line by line."""
        changed: dict[str, Any] = {
            "content_hash": self._hash(row, parameters),
            "diff": _diff(dlq.stored_payload(row.pk), parameters["payload"]),
        }
        if parameters["redrive"]:
            changed |= {"status": EntryStatus.PENDING.value, "attempts": 0, "code": ""}
        return changed

    def _change(self, row: OutboxEntry, by: By) -> dict[str, Any]:
        this, payload = OutboxEntry.objects.filter(pk=row.pk), by.parameters["payload"]
        original = dlq.stored_payload(row.pk)
        why = {"code": row.last_error_code, "error": row.last_error}
        row.content_hash = self._hash(row, by.parameters)
        if not this.edit(payload, row.content_hash):
            raise RefusedError(_("it is not dead any more"))
        if by.parameters["redrive"]:
            _redrive(row)
        return {
            **why,
            "original": _readable(original),
            "edited": payload,
            "diff": _diff(original, payload),
            "redriven": by.parameters["redrive"],
        }


def _checked_payload(payload: Any) -> dict[str, Any]:
    """Return a payload that can be posted; raise WrongParametersError."""
    if not isinstance(payload, dict):
        raise WrongParametersError(_("the payload is not a JSON object"))
    try:
        text = canonical(payload)
        payloads.read(text, connection.vendor)
    except (payloads.RefusedError, ValueError, RecursionError) as error:
        text = _("the payload cannot be posted: %(error)s") % {"error": error}
        raise WrongParametersError(text) from None
    except payloads.UnknownVersionError:
        raise WrongParametersError(_("the payload's schema_version is for newer code")) from None
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > settings.OUTBOX_MAX_PAYLOAD_BYTES:
        facts = {"size": size, "most": settings.OUTBOX_MAX_PAYLOAD_BYTES}
        text = _("the payload has %(size)d bytes; %(most)d are allowed")
        raise WrongParametersError(text % facts)
    return dict(json.loads(text))


def _readable(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _diff(original: str, payload: Mapping[str, Any]) -> list[str]:
    """Return a unified diff of two payloads, one item a line."""
    before, after = _lines(_readable(original)), _lines(payload)
    return list(difflib.unified_diff(before, after, "original", "edited", lineterm="", n=2))


def _lines(content: Any) -> list[str]:
    if isinstance(content, str):
        return content.splitlines()
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False).splitlines()
