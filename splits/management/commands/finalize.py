"""``finalize``: submit drafts and finalize here and now."""

from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandParser

from recovery.audit import cli_actor
from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from splits import lifecycle
from splits.audit import Author
from splits.finalize import Ending, finalize
from splits.models import OrderStatus, SplitOrder

WHAT_TO_DO = {
    OrderStatus.FAILED: "its attempts are used up: retry it",
    OrderStatus.QUARANTINED: "recovered too often: find out why, then release it",
    OrderStatus.CANCELLED: "cancelled",
    OrderStatus.REVERSED: "reversed",
}
IN_PROGRESS = "in progress since {since}: if it hangs, use recover_stuck"
FINALIZED_ALREADY = "finalized already"


class Command(OperatorCommand):
    """Finalize split orders in this process."""

    help = "Submit drafts and finalize orders here and now, whatever next_finalize_at says."

    def add_options(self, parser: CommandParser) -> None:
        """Add the numbers and --all-ready."""
        parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="numbers of split orders")
        parser.add_argument(
            "--all-ready", action="store_true", help="every ready order that is not in progress"
        )

    def run(self, **options: Any) -> int:
        """Finalize one by one; 1 if any did not end finalized."""
        numbers: list[str] = options["numbers"]
        if bool(numbers) == options["all_ready"]:
            raise UsageError("name the orders to finalize, or --all-ready for all of them")
        self.finalized: list[str] = []
        self.failed: list[dict[str, str]] = []
        self.skipped: list[dict[str, str]] = []
        self.wrong = False
        todo = numbers or _all_ready()
        for number in self.progress(todo, total=len(todo), unit="orders"):
            self.finalize(number)
        self.document = {
            "finalized": self.finalized,
            "failed": self.failed,
            "skipped": self.skipped,
        }
        self.say(
            f"{len(self.finalized)} finalized, {len(self.failed)} failed, "
            f"{len(self.skipped)} skipped"
        )
        return WRONG if self.wrong else DONE

    def finalize(self, number: str) -> None:
        """Submit the order if it is a draft, and finalize it."""
        order = SplitOrder.objects.filter(number=number).first()
        if order is None:
            self.skip(number, "no such split order")
            return
        if order.status == OrderStatus.DRAFT:
            lifecycle.submit(order.pk)
        outcome = finalize(order.pk, author=Author(cli_actor()), now=True)
        if outcome is None:
            self.say_why_not(order)
        elif outcome.ending is Ending.FINALIZED:
            self.finalized.append(number)
            self.say(f"{number}: finalized")
        else:
            self.wrong = True
            self.failed.append({"number": number, "code": outcome.code, "error": outcome.error})
            self.say(f"{number}: {outcome.ending} ({outcome.code}) {outcome.error}")

    def say_why_not(self, order: SplitOrder) -> None:
        """Say why the order could not be claimed."""
        order.refresh_from_db()
        if order.status == OrderStatus.FINALIZED:
            self.skip(order.number, FINALIZED_ALREADY, wrong=False)
        elif order.finalize_in_progress:
            self.skip(order.number, IN_PROGRESS.format(since=order.finalize_started_at))
        else:
            self.skip(order.number, WHAT_TO_DO.get(OrderStatus(order.status), "its row is locked"))

    def skip(self, number: str, reason: str, *, wrong: bool = True) -> None:
        """Note an order that was not worked."""
        self.wrong = self.wrong or wrong
        self.skipped.append({"number": number, "reason": reason})
        self.say(f"{number}: skipped, {reason}")


def _all_ready() -> list[str]:
    orders: Iterable[str] = (
        SplitOrder.objects.eligible().order_by("pk").values_list("number", flat=True)
    )
    return list(orders)
