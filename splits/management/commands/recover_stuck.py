"""``recover_stuck``: reset finalizations that hang, with the proof that nobody holds them."""

import math
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from recovery.audit import cli_actor
from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from splits import stuck
from splits.audit import Author
from splits.models import SplitOrder
from splits.stuck import Recovery, Result


class Command(OperatorCommand):
    """Find and reset finalizations that hang."""

    help = "Reset split orders whose finalization hangs; an order that is held is left alone."

    def add_options(self, parser: CommandParser) -> None:
        """Add which orders, and how."""
        parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="only these split orders")
        parser.add_argument(
            "--threshold",
            type=float,
            metavar="SEC",
            help="age of the last progress (default: JOB_FINALIZE_STUCK_THRESHOLD_SEC)",
        )
        parser.add_argument("--dry-run", action="store_true", help="only say what is stuck")
        parser.add_argument(
            "--no-retry", action="store_true", help="leave the orders ready, for you to start"
        )
        parser.add_argument(
            "--force", action="store_true", help="also young ones and quarantined ones"
        )
        parser.add_argument("--reason", default="", metavar="TEXT", help="for the audit record")

    def run(self, **options: Any) -> int:
        """Find, reset, report; 1 if an order is held or not known."""
        request = _request(options)
        unknown = _unknown(options["numbers"])
        found = list(stuck.find(request, options["numbers"]))
        recoveries: list[Recovery] = []
        if not options["dry_run"]:
            todo = stuck.recover_all(found, request)
            recoveries = list(self.progress(todo, total=len(found), unit="orders"))
        self.document = {"found": [order.number for order in found], **_report(recoveries)}
        self.document["unknown"] = unknown
        self.tell(recoveries)
        return WRONG if unknown or self.document["held"] else DONE

    def tell(self, recoveries: list[Recovery]) -> None:
        """Print what became of each order."""
        self.say(f"{len(self.document['found'])} found: {', '.join(self.document['found'])}")
        for recovery in recoveries:
            self.say(f"{recovery.number}: {recovery.result} {_holder_text(recovery)}".rstrip())
        for number in self.document["unknown"]:
            self.say(f"{number}: no such split order")


def _request(options: dict[str, Any]) -> stuck.Request:
    threshold_s = options["threshold"]
    if threshold_s is None:
        threshold_s = settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC
    if not (math.isfinite(threshold_s) and 0 <= threshold_s <= 10**9):
        raise UsageError("--threshold takes seconds: a number from 0 to a billion")
    return stuck.Request(
        author=Author(cli_actor(), reason=options["reason"]),
        threshold_s=threshold_s,
        due=not options["no_retry"],
        force=options["force"],
    )


def _unknown(numbers: list[str]) -> list[str]:
    known = SplitOrder.objects.filter(number__in=numbers).values_list("number", flat=True)
    return sorted(set(numbers) - set(known))


def _report(recoveries: list[Recovery]) -> dict[str, list[Any]]:
    """Return the lists of the JSON document; orders whose attempts are used up are in two."""
    reset = (Result.RECOVERED, Result.FAILED, Result.RELEASED)
    return {
        "recovered": [it.number for it in recoveries if it.result in reset],
        "held": [_held(it) for it in recoveries if it.result is Result.HELD],
        "quarantined": [it.number for it in recoveries if it.result is Result.QUARANTINED],
        "failed": [it.number for it in recoveries if it.result is Result.FAILED],
    }


def _held(recovery: Recovery) -> dict[str, Any]:
    holder = recovery.holder.as_dict() if recovery.holder else None
    return {"number": recovery.number, "holder": holder}


def _holder_text(recovery: Recovery) -> str:
    holder = recovery.holder
    if holder is None:
        return ""
    if holder.connection_id is None:
        return f"by an unknown connection. {holder.hint}"
    return (
        f"by connection {holder.connection_id} ({holder.user}@{holder.host}),"
        f" its transaction open for {holder.age_s} s, {holder.command} {holder.query}"
    )
