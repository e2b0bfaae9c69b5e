"""What operators may do to split orders: recover, retry, release, cancel, reverse."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from django.conf import settings
from django.db.models import QuerySet
from django.utils.translation import gettext as _

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
from recovery.clock import db_now
from splits import audit, lifecycle, stuck
from splits.audit import Author
from splits.errors import SplitError
from splits.holders import HOLDERS_CHANGE, Holder, find_holder
from splits.lifecycle import FINALIZE_JOB
from splits.models import FinalizeStep, OrderStatus, SplitOrder, StepName
from splits.stuck import Found, Recovery, Result


class OrderAction(Action[SplitOrder]):
    """Something that may be done to an order."""

    target_type = audit.TARGET
    key_name = "NUMBER"
    fitting: ClassVar[Collection[OrderStatus]]
    """The statuses of the orders it is for."""

    def rows(self) -> "QuerySet[SplitOrder]":
        """Return orders."""
        return SplitOrder.objects.all()

    def candidates(self, parameters: Mapping[str, Any]) -> "QuerySet[SplitOrder]":
        """Return the orders whose status fits."""
        return self.rows().filter(status__in=self.fitting)

    def find(self, keys: Sequence[str]) -> tuple[list[int], list[str]]:
        """Return orders by number."""
        known = dict(SplitOrder.objects.filter(number__in=keys).values_list("number", "pk"))
        return [known[it] for it in keys if it in known], [it for it in keys if it not in known]

    def label(self, row: SplitOrder) -> str:
        """Return the number."""
        return row.number

    def state(self, row: SplitOrder) -> dict[str, Any]:
        """Return what an attempt, a reset or an operator changes."""
        return {
            **audit.facts(row),
            "progress_at": moment(row.finalize_progress_at),
            "code": row.last_finalize_error_code,
        }

    def misfit(self, row: SplitOrder, parameters: Mapping[str, Any]) -> str:
        """Refuse other statuses."""
        if row.finalize_in_progress:
            return _("it is being finalized")
        if row.status not in self.fitting:
            wanted = _(" or ").join(str(it.label) for it in self.fitting)
            facts = {"status": row.get_status_display(), "wanted": wanted}
            return _("it is %(status)s, not %(wanted)s") % facts
        return ""


class VerbAction(OrderAction):
    """An action that is one of ``splits.lifecycle``'s verbs."""

    verb: ClassVar[Callable[..., bool]]
    """Changes the order and writes the record; False: it was so already."""

    def apply(self, row: SplitOrder, by: By) -> str:
        """Change the order by its verb, which writes the record."""
        author = Author(by.actor, by.reason, by.run_id, by.plan_id)
        try:
            changed = self.verb(row.pk, author=author)
        except SplitError as error:
            raise RefusedError(str(error)) from error
        if not changed:
            raise RefusedError(_("it was so already"))
        return self.audit_action.rpartition("-")[2]


def _fared(targets: Sequence[Target]) -> dict[int, Seen]:
    """Return how the first attempt to finalize since the action ended."""
    rows = SplitOrder.objects.in_bulk([it.row_id for it in targets])
    gone = Seen(Sight.GOOD, "it is gone")
    return {it.row_id: _seen(rows[it.row_id], it) if it.row_id in rows else gone for it in targets}


def _seen(order: SplitOrder, target: Target) -> Seen:
    if order.status in (OrderStatus.FINALIZED, OrderStatus.REVERSED, OrderStatus.CANCELLED):
        return Seen(Sight.GOOD, order.status)
    if order.status == OrderStatus.READY and order.next_finalize_at is None:
        return Seen(Sight.GOOD, "it waits for an operator to start it")
    attempted = order.finalize_attempts > int(target.after.get("attempts") or 0)
    if order.finalize_in_progress or (order.status == OrderStatus.READY and not attempted):
        return Seen(Sight.UNKNOWN)
    return Seen(Sight.BAD, f"{order.last_finalize_error_code}: {order.last_finalize_error}")


class Starting:
    """Mixed into actions after which the order is finalized."""

    followed_job = FINALIZE_JOB

    def becomes(self, row: SplitOrder, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what fresh attempts change."""
        return {"status": OrderStatus.READY.value, "attempts": 0}

    def look(self, targets: Sequence[Target]) -> dict[int, Seen]:
        """Return how the first attempt since then ended."""
        return _fared(targets)


@action
class Retry(Starting, VerbAction):
    """Fresh attempts for an order that used up its own."""

    name = "split.retry"
    summary = "Give failed orders fresh attempts, due at once."
    permission = "splits.retry_splitorder"
    audit_action = audit.RETRIED
    verb = staticmethod(lifecycle.retry)
    fitting = (OrderStatus.FAILED,)


@action
class Release(Starting, VerbAction):
    """Out of quarantine, with fresh counters."""

    name = "split.release"
    summary = "Let quarantined orders go, ready with fresh counters."
    permission = "splits.release_splitorder"
    audit_action = audit.RELEASED
    verb = staticmethod(lifecycle.release)
    fitting = (OrderStatus.QUARANTINED,)


@action
class Cancel(VerbAction):
    """Given up before it moved stock."""

    name = "split.cancel"
    summary = "Cancel orders that have not moved stock; their lots are free again."
    permission = "splits.cancel_splitorder"
    audit_action = audit.CANCELLED
    verb = staticmethod(lifecycle.cancel)
    fitting = (OrderStatus.DRAFT, OrderStatus.READY, OrderStatus.FAILED, OrderStatus.QUARANTINED)

    def misfits(
        self, rows: Sequence[SplitOrder], parameters: Mapping[str, Any], chosen: Collection[int]
    ) -> dict[int, str]:
        """Leave out also those whose source lot is consumed."""
        found = super().misfits(rows, parameters, chosen)
        moved = FinalizeStep.objects.filter(order__in=rows, name=StepName.CONSUME_SOURCE)
        for pk in moved.values_list("order_id", flat=True):
            found.setdefault(pk, _("its source lot is consumed already"))
        return found

    def becomes(self, row: SplitOrder, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a cancellation changes."""
        return {"status": OrderStatus.CANCELLED.value, "next_finalize_at": None}


@action
class Reverse(VerbAction):
    """Undone, while its child lots are untouched."""

    name = "split.reverse"
    summary = "Undo finalized orders whose child lots are untouched, by a reversing transaction."
    permission = "splits.reverse_splitorder"
    audit_action = audit.REVERSED
    verb = staticmethod(lifecycle.reverse)
    fitting = (OrderStatus.FINALIZED,)

    def misfits(
        self, rows: Sequence[SplitOrder], parameters: Mapping[str, Any], chosen: Collection[int]
    ) -> dict[int, str]:
        """Leave out also those that the guard of a reversal refuses."""
        found = super().misfits(rows, parameters, chosen)
        fitting = [row for row in rows if row.pk not in found]
        return found | lifecycle.why_not_reversible(fitting)

    def becomes(self, row: SplitOrder, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a reversal changes."""
        return {"status": OrderStatus.REVERSED.value, "publishes": row.reversal_key}


@action
class Recover(Starting, OrderAction):
    """Reset of a finalization that hangs, with the proof that nobody holds it."""

    name = "split.recover"
    summary = "Reset finalizations that hang, if no live transaction holds them."
    permission = "splits.recover_splitorder"
    audit_action = audit.RECOVERED
    fitting = (OrderStatus.READY,)
    patience_s = ()
    parameter_names: ClassVar = ("threshold_s", "no_retry", "force")

    def checked(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters with the threshold; raise WrongParametersError."""
        kept = super().checked(parameters)
        try:
            threshold_s = float(kept.get("threshold_s", settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC))
        except (TypeError, ValueError):
            raise WrongParametersError("threshold_s is a number of seconds") from None
        if not 0 <= threshold_s <= stuck.LONGEST_THRESHOLD_S:
            raise WrongParametersError("threshold_s is a number of seconds, from 0 to a billion")
        switches = {name: kept.get(name, False) for name in ("no_retry", "force")}
        if wrong := [name for name, value in switches.items() if not isinstance(value, bool)]:
            raise WrongParametersError(f"{wrong[0]} is true or false")
        return {"threshold_s": threshold_s, **switches}

    def candidates(self, parameters: Mapping[str, Any]) -> "QuerySet[SplitOrder]":
        """Return the orders that hang, and with ``force`` all in progress or quarantined."""
        checked = self.checked(parameters)
        if checked["force"]:
            quarantined = self.rows().filter(status=OrderStatus.QUARANTINED)
            return SplitOrder.objects.in_progress() | quarantined
        return SplitOrder.objects.stuck(checked["threshold_s"])

    def misfit(self, row: SplitOrder, parameters: Mapping[str, Any]) -> str:
        """Refuse what is not in progress, or made progress lately."""
        if parameters["force"] and row.status == OrderStatus.QUARANTINED:
            return ""
        if not row.finalize_in_progress:
            facts = {"status": row.get_status_display()}
            return _("it is %(status)s and not in progress") % facts
        made = row.finalize_progress_at
        age_s = (db_now() - made).total_seconds() if made else None
        if parameters["force"] or age_s is None or age_s > parameters["threshold_s"]:
            return ""
        facts = {"age": f"{age_s:.0f}", "threshold": f"{parameters['threshold_s']:g}"}
        return _("it made progress %(age)s s ago, within %(threshold)s s") % facts

    def becomes(self, row: SplitOrder, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a reset changes, where nothing is used up."""
        return {"in_progress": False, "epoch": row.finalize_epoch + 1}

    def apply(self, row: SplitOrder, by: By) -> str:
        """Reset under the lock that proves that nobody holds it."""
        parameters = by.parameters
        request = stuck.Request(
            author=Author(by.actor, by.reason, by.run_id, by.plan_id),
            threshold_s=parameters["threshold_s"],
            due=not parameters["no_retry"],
            force=parameters["force"],
        )
        result = stuck.reset_locked(row, request)
        if result is Result.GONE:
            raise RefusedError(_("it is not stuck any more"))
        return result.value

    def holder(self, row_id: int) -> dict[str, Any] | None:
        """Return the connection that holds the order."""
        found = find_holder(row_id)
        return found.as_dict() if found else None

    def settle(self, row_id: int, result: Mapping[str, Any]) -> None:
        """Count and log the sighting, once an epoch."""
        order = SplitOrder.objects.filter(pk=row_id).first()
        ended = Result.HELD.value if "holder" in result else result.get("ended")
        if order is None or ended not in set(Result):
            return
        # A reset has raised the epoch that was seen; a quick worker may have raised it again.
        known = result.get("after") or audit.facts(order)
        epoch = int(known["epoch"]) - (0 if ended == Result.HELD else 1)
        found = Found(order.pk, order.number, epoch, int(known["attempts"]))
        stuck.note(found, Recovery(order.number, Result(ended)))
        if ended == Result.HELD:
            stuck.note_holder(found, Holder(**(result["holder"] or {"hint": HOLDERS_CHANGE})))
