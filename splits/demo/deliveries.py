"""A board now and then, so that there is something to watch while the demo is tried out."""

import time
from collections.abc import Callable
from itertools import cycle

from django.db import DatabaseError
from django.utils.translation import gettext as _

from ledger.models import Account, Transaction
from splits.demo import boards
from splits.demo.scenes import CLOSED_ACCOUNT, CLOSED_SKU
from splits.imports import ImportStoppedError
from splits.models import SplitOrder

EVERY_S = 15.0
AT_MOST = 500
"""Two hours of boards: a demo that is forgotten does not fill the disk."""


class Deliveries:
    """Receives a board and splits it, every so often; none whose stock account is closed."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        """Begin in a moment; ``tell`` is told what matters."""
        self._tell = tell
        self._skus = cycle(boards.skus())
        self._left = AT_MOST
        self._awaited = ""
        self._was_shut = _is_shut(CLOSED_ACCOUNT)
        self._next_at = time.monotonic() + EVERY_S

    def turn(self) -> None:
        """Deliver what is due; a database that is busy costs one delivery, not the demo."""
        try:
            self._turn()
        except (DatabaseError, ImportStoppedError, boards.RefusedBoardError) as error:
            self._tell(_("No board this time: %(error)s") % {"error": error})
            self._next_at = time.monotonic() + EVERY_S

    def _turn(self) -> None:
        shut = _is_shut(CLOSED_ACCOUNT)
        if self._was_shut and not shut:
            number = self._deliver(CLOSED_SKU)
            self._awaited = f"lot:{boards.board_of(number)}:received"
            text = _(
                "%(account)s is open again: the next board of that SKU arrives, with %(order)s."
            )
            self._tell(text % {"account": CLOSED_ACCOUNT, "order": number})
        self._was_shut = shut
        self._look_out()
        if self._left and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + EVERY_S
            self._deliver_next()

    def _look_out(self) -> None:
        """Tell once the first board after the reopening is in the ledger."""
        if not self._awaited:
            return
        posted = Transaction.objects.filter(event_key=self._awaited).first()
        if posted:
            text = _("Its receipt is posted: transaction %(id)s, %(key)s.")
            self._tell(text % {"id": posted.pk, "key": posted.event_key})
            self._awaited = ""

    def _deliver_next(self) -> None:
        for _turn in boards.skus():
            sku = next(self._skus)
            if not _is_shut(f"stock:{sku}"):
                self._deliver(sku)
                return

    def _deliver(self, sku: str) -> str:
        self._left -= 1
        number = _next_number()
        boards.deliver({number: sku})
        return number


def _is_shut(account: str) -> bool:
    return Account.objects.filter(code=account).exclude(closed_at=None).exists()


def _next_number() -> str:
    """Return the number after the newest: ``LIVE-1`` and so on."""
    live = SplitOrder.objects.filter(number__gte="LIVE-", number__lt="LIVE.").order_by("-pk")
    live = live.filter(number__regex=r"^LIVE-\d+$")
    newest = live.values_list("number", flat=True).first() or "LIVE-0"
    return f"LIVE-{int(newest.removeprefix('LIVE-')) + 1}"
