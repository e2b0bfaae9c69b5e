"""``recover_stuck``: reset finalizations that hang, with the proof that nobody holds them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.db import OperationalError

from recovery import actions, plans
from recovery.actions import WrongParametersError
from recovery.audit import cli_actor
from recovery.clock import db_now
from recovery.commands import DONE, WRONG, UsageError
from recovery.errors import is_row_locked
from recovery.models import ItemStatus, Plan, PlanItem
from recovery.plancommand import PlanCommand, add_pace, pace_of
from recovery.plans import PlanError, Wanted
from splits import stuck
from splits.actions import Recover
from splits.holders import Holder
from splits.models import SplitOrder
from splits.stuck import Result

RESET = (Result.RECOVERED, Result.FAILED, Result.RELEASED)
"""Orders whose attempts are used up are reset too, and listed a second time."""
HOLDERS_NAMED = 5
"""A rehearsal asks so often who holds an order: each time takes up to two seconds."""


class Command(PlanCommand):
    """Find finalizations that hang, and reset them by a plan."""

    help = (
        "Reset split orders whose finalization hangs; an order that is held is left alone."
        " Exit status 1 where one is held or not known."
    )

    def add_options(self, parser: CommandParser) -> None:
        """Add which orders, and how."""
        parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="only these split orders")
        parser.add_argument(
            "--threshold",
            metavar="SEC",
            help="age of the last progress (default: JOB_FINALIZE_STUCK_THRESHOLD_SEC)",
        )
        parser.add_argument(
            "--no-retry", action="store_true", help="leave the orders ready, for you to start"
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="also young ones and quarantined ones; needs NUMBERs, or --all",
        )
        parser.add_argument("--all", action="store_true", help="with --force: whatever it fits")
        add_pace(parser)

    def run(self, **options: Any) -> int:
        """Find, reset, report; 1 if an order is held or not known."""
        wanted = _wanted(options)
        self.named, self.unknown = options["numbers"], _unknown(options["numbers"])
        if not wanted.ids:
            self._tell(wanted.ids)
            return WRONG if self.unknown else DONE
        if options["dry_run"]:
            return self._only_look(wanted)
        try:
            return self.carry_out(wanted, options)
        except PlanError as error:
            raise UsageError(str(error)) from error

    def report(self, plan: Plan, *, status: int | None = None) -> int:
        """Print what became of each order; return the exit status, ``status`` where it is given."""
        items = list(plan.items.order_by("id"))
        self._tell([it.row_id for it in items], items)
        self.document["plan"] = plan.pk
        if plan.note:
            self.say(plan.note)
        if status is not None:
            return status
        drifted = any(it.status == ItemStatus.DRIFTED for it in items)
        wrong = self.document["held"] or self.document["not_reset"] or self.unknown or drifted
        return WRONG if wrong or not plan.has_ended() else DONE

    def _tell(self, ids: Sequence[int], items: list[PlanItem] | None = None) -> None:
        """Fill the document, and print it for people."""
        ended = {it.label: _ended(it) for it in items or ()}
        numbers = list(ended) or _numbers(ids)
        held = [it for it in items or () if it.status == ItemStatus.HELD]
        of = {result: [number for number, it in ended.items() if it == result] for result in Result}
        refused = [it for it in items or () if it.status == ItemStatus.FAILED and not it.result]
        self.document = {
            "found": numbers,
            "recovered": [number for number, it in ended.items() if it in RESET],
            "held": [{"number": it.label, "holder": _holder(it)} for it in held],
            "quarantined": of[Result.QUARANTINED],
            "failed": of[Result.FAILED],
            "unknown": self.unknown,
            "not_reset": [{"number": it.label, "why": it.note} for it in refused],
        }
        self.say(f"{len(numbers)} found: {', '.join(numbers)}".rstrip(" :"))
        for item in items or ():
            self.say(f"{item.label}: {ended[item.label]} {_detail(item)}".rstrip())
        named = SplitOrder.objects.filter(number__in=self.named)
        for order in named.exclude(number__in=numbers).order_by("pk"):
            self.say(_left_alone_text(order))
        for number in self.unknown:
            self.say(f"{number}: no such split order")

    def _only_look(self, wanted: Wanted) -> int:
        """Say what hangs, for how long, and who holds it; leave one audit record."""
        self._tell(wanted.ids)
        now, asked, hanging = db_now(), 0, []
        for order in SplitOrder.objects.filter(pk__in=wanted.ids).order_by("pk"):
            holder = stuck.holder_now(order.pk) if asked < HOLDERS_NAMED else None
            asked += holder is not None
            age_s = _age_s(order, now)
            hanging.append(
                {
                    "number": order.number,
                    "status": order.status,
                    "age_s": age_s,
                    "epoch": order.finalize_epoch,
                    "finalizer": order.finalize_owner,
                    "holder": holder and holder.as_dict(),
                }
            )
            self.say(_hanging_text(order, age_s, holder))
        self.document["hanging"] = hanging
        noted = self._note(wanted, len(hanging))
        self.say("nothing has been changed")
        return DONE if noted and not self.unknown and not asked else WRONG

    def _note(self, wanted: Wanted, count: int) -> bool:
        """Leave the audit record of the look; False: a hanging writer lets nobody write."""
        try:
            plans.note_preview(wanted, fitting=count, excluded=0)
        except OperationalError as error:
            if not is_row_locked(error):
                raise
            self.document["not_noted"] = str(error)
            self.say(f"without an audit record of this look: {error}; another process is writing")
            return False
        return True


def _wanted(options: Mapping[str, Any]) -> Wanted:
    action = actions.get(Recover.name)
    given = options["threshold"]
    threshold = settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC if given is None else given
    try:
        parameters = action.checked(
            {
                "threshold_s": threshold,
                "no_retry": options["no_retry"],
                "force": options["force"],
            }
        )
    except WrongParametersError as error:
        raise UsageError("--threshold takes seconds: a number from 0 to a billion") from error
    numbers = list(dict.fromkeys(options["numbers"]))
    if options["force"] and bool(numbers) == options["all"]:
        raise UsageError("--force takes healthy orders too: name the NUMBERs, or add --all")
    found = action.candidates(parameters)
    if numbers:
        found = found.filter(number__in=numbers)
    # All at once: for the sake of a LIMIT MariaDB would walk the primary key.
    ids = list(found.order_by("pk").values_list("pk", flat=True))
    selection = {"numbers": numbers} if numbers else {"all": True}
    reason = options["reason"].strip()
    reason = reason or _why(parameters)
    pace = pace_of(options, halt_share=None if options["canary"] else 1)
    return Wanted(action.name, ids, cli_actor(), reason, parameters, selection, pace)


def _why(parameters: Mapping[str, Any]) -> str:
    if parameters["force"]:
        return "forced"
    return f"no progress for more than {parameters['threshold_s']:g} s"


def _unknown(numbers: list[str]) -> list[str]:
    known = SplitOrder.objects.filter(number__in=numbers).values_list("number", flat=True)
    return sorted(set(numbers) - set(known))


def _numbers(ids: Sequence[int]) -> list[str]:
    found = SplitOrder.objects.filter(pk__in=ids).order_by("pk")
    return list(found.values_list("number", flat=True))


def _ended(item: PlanItem) -> str:
    """Return in a word what became of an order."""
    if item.status == ItemStatus.HELD:
        return Result.HELD
    if item.status == ItemStatus.WAITING:
        return "waiting"
    if ended := item.result.get("ended"):
        return str(ended)
    return "not reset" if item.status == ItemStatus.FAILED else Result.GONE


def _holder(item: PlanItem) -> dict[str, Any] | None:
    return item.result.get("holder") or None


def _detail(item: PlanItem) -> str:
    """Return what there is to say beyond the word."""
    if item.status == ItemStatus.HELD:
        return _holder_text(Holder(**(_holder(item) or {})))
    if item.result:
        return ""
    return f"({item.note})" if item.note else ""


def _holder_text(holder: Holder) -> str:
    if holder.connection_id is None:
        return f"by an unknown connection. {holder.hint}".rstrip()
    return (
        f"by connection {holder.connection_id} ({holder.user}@{holder.host}),"
        f" its transaction open for {holder.age_s} s, {holder.command} {holder.query}"
    ).rstrip()


def _age_s(order: SplitOrder, now: datetime) -> float | None:
    made = order.finalize_progress_at
    return round((now - made).total_seconds(), 3) if made else None


def _hanging_text(order: SplitOrder, age_s: float | None, holder: Holder | None) -> str:
    parts = [order.status]
    if order.finalize_in_progress:
        since = "since it was claimed" if age_s is None else f"for {age_s:.0f} s"
        parts = [f"no progress {since}", f"finalizer {order.finalize_owner}"]
    if holder:
        parts.append(f"held {_holder_text(holder)}")
    return f"{order.number}: {', '.join(parts)}"


def _left_alone_text(order: SplitOrder) -> str:
    """Say of an order that was named why it was not found to hang."""
    if order.finalize_in_progress:
        age_s = _age_s(order, db_now())
        return _hanging_text(order, age_s, None).replace(": ", ": left alone, ", 1)
    return f"{order.number}: left alone, {order.status} and not in progress"
