"""What happened in each story, line by line: for the terminal and, with links, for the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.utils import quote
from django.db.models import Model
from django.urls import reverse
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from ledger.models import OutboxEntry
from splits.demo.environment import (
    BACKOFF_BASE_S,
    BREAKER_FAILURES,
    OUTBOX_ATTEMPTS,
    STUCK_AFTER_S,
)
from splits.demo.scenes import ClosedAccount, DeafEndpoint, KilledFinalizer, is_posted
from splits.models import Breaker, FinalizeStep, SplitOrder

SILENCE_STEP_S = 4


@dataclass(frozen=True)
class Link:
    """Where to look in the admin."""

    label: str
    to: Model

    @property
    def url(self) -> str:
        """Return the address of the row's page."""
        meta = self.to._meta
        route = f"admin:{meta.app_label}_{meta.model_name}_change"
        return reverse(route, args=(quote(self.to.pk),))


@dataclass(frozen=True)
class Line:
    """One thing that happened; ``key`` tells it from the story's other lines."""

    key: str
    text: str
    at: datetime | None = None
    links: tuple[Link, ...] = ()


def clock(moment: datetime | None) -> str:
    """Return the time of day in the site's time zone."""
    return f"{localtime(moment):%H:%M:%S}" if moment else "-"


def _line(key: str, text: str, at: datetime | None = None, /, **links: Model | None) -> Line:
    found = tuple(Link(_label(name), row) for name, row in links.items() if row is not None)
    return Line(key, text, at, found)


def _label(name: str) -> str:
    return {
        "account": pgettext("link", "account"),
        "audit": pgettext("link", "audit record"),
        "breaker": pgettext("link", "breaker"),
        "entry": pgettext("link", "ledger entry"),
        "order": pgettext("link", "order"),
    }[name]


def of_closed_account(scene: ClosedAccount) -> Iterator[Line]:
    """Tell story 1 as far as it went."""
    closing, order, receipt = scene.closing, scene.order, scene.receipt
    if closing:
        text = _("Account %(account)s is closed by hand, on the record: it takes no postings.")
        facts = {"account": closing.target_id}
        yield _line("shut", text % facts, closing.at, account=scene.account, audit=closing)
    if order is None or receipt is None:
        return
    text = _("Board %(board)s of that SKU arrives; order %(order)s splits it.")
    facts = {"board": order.source_lot.code, "order": order.number}
    yield _line("arrived", text % facts, order.created_at, order=order)
    yield from _refusal(scene, receipt)
    yield from _beside(scene, order)
    yield from _death(scene, receipt)
    if is_posted(receipt):
        text = _("The receipt was posted after all: somebody opened the account again.")
        yield _line("posted", text, receipt.posted_at, entry=receipt)


def _refusal(scene: ClosedAccount, receipt: OutboxEntry) -> Iterator[Line]:
    if scene.death or not receipt.attempts or not scene.holds_back:
        return
    text = _(
        "Its receipt is refused: %(code)s. Attempt %(attempt)s of %(attempts)s, the next one in"
        " %(delay)s s, at %(next)s."
    )
    facts = {
        "code": receipt.last_error_code,
        "attempt": receipt.attempts,
        "attempts": OUTBOX_ATTEMPTS,
        "delay": BACKOFF_BASE_S * 2 ** (receipt.attempts - 1),
        "next": clock(receipt.next_attempt_at),
    }
    yield _line(f"refused {receipt.attempts}", text % facts, entry=receipt)


def _beside(scene: ClosedAccount, order: SplitOrder) -> Iterator[Line]:
    """Tell of the orders: the one that waits for the receipt, and the one that does not."""
    if scene.waits_behind and scene.holds_back:
        text = _(
            "The board's own order is finalized too, but its ledger entry waits behind the"
            " receipt: a board cannot leave the ledger before it came in."
        )
        yield _line("waits", text, order.finalized_at, entry=scene.movement)
    if scene.others_go_on and scene.other:
        text = _("Everybody else goes on: order %(order)s is finalized and posted.")
        facts = {"order": scene.other.number}
        yield _line("others", text % facts, scene.other.finalized_at, order=scene.other)


def _death(scene: ClosedAccount, receipt: OutboxEntry) -> Iterator[Line]:
    if scene.death is None:
        return
    text = _(
        "Refused %(attempts)s times, ever more slowly (%(code)s): the receipt is dead, in the DLQ,"
        " with its reason. It stays there until somebody decides about it."
    )
    facts = {
        "attempts": scene.death.after.get("attempts", OUTBOX_ATTEMPTS),
        "code": scene.death.evidence.get("code", receipt.last_error_code),
    }
    yield _line("dead", text % facts, scene.death.at, entry=receipt, audit=scene.death)


def of_deaf_endpoint(scene: DeafEndpoint) -> Iterator[Line]:
    """Tell story 2 as far as it went."""
    orders = scene.orders
    if not orders:
        return
    text = ngettext(
        "%(count)s order is submitted while the completion endpoint refuses connections.",
        "%(count)s orders are submitted while the completion endpoint refuses connections.",
        len(orders),
    )
    yield _line("submitted", text % {"count": len(orders)}, orders[0].created_at)
    yield from _failures(scene)
    if scene.is_open and scene.breaker:
        yield from _open_breaker(scene, scene.breaker)
    yield from _back(scene)


def _failures(scene: DeafEndpoint) -> Iterator[Line]:
    """Tell of each failed attempt, and of why, at the first one."""
    for record in scene.failures:
        attempt = int(record.after.get("attempts", 1))
        text = _("%(order)s: attempt %(attempt)s failed, the next one in %(delay)s s.")
        facts = {
            "order": record.target_id,
            "attempt": attempt,
            "delay": BACKOFF_BASE_S * 2 ** (attempt - 1),
        }
        why = f" {record.evidence.get('error', '')}." if record is scene.failures[0] else ""
        yield _line(f"failed {record.pk}", text % facts + why, record.at, audit=record)
    if scene.failures and scene.movements and all(is_posted(it) for it in scene.movements):
        text = _("Their lots and the ledger are done already; only telling the outside is left.")
        at = max((it.posted_at for it in scene.movements if it.posted_at), default=None)
        yield _line("posted", text, at, entry=scene.movements[0])


def _open_breaker(scene: DeafEndpoint, breaker: Breaker) -> Iterator[Line]:
    text = _(
        "%(count)s failures in a row open the breaker: until %(next)s nothing is tried and"
        " nobody is charged."
    )
    facts: dict[str, Any] = {"count": BREAKER_FAILURES, "next": clock(breaker.next_try_at)}
    yield _line("opened", text % facts, breaker.opened_at, breaker=breaker)
    waiting = scene.uncharged
    if waiting:
        text = _("%(count)s of %(all)s orders wait at the breaker; attempts stay at %(charged)s.")
        charged = ", ".join(str(order.finalize_attempts) for order in waiting)
        facts = {"count": len(waiting), "all": len(scene.orders), "charged": charged}
        yield _line(f"uncharged {len(waiting)}", text % facts, order=waiting[-1])


def _back(scene: DeafEndpoint) -> Iterator[Line]:
    """Tell of the end: the breaker closes, everybody finalizes."""
    if not scene.was_opened:
        return
    finalized_at = sorted(order.finalized_at for order in scene.finalized if order.finalized_at)
    if scene.breaker and finalized_at and not scene.is_open:
        text = _("The breaker let one order try; that succeeded, so the breaker is closed again.")
        yield _line("closed", text, finalized_at[0], breaker=scene.breaker)
    if finalized_at:
        text = _("%(count)s of %(all)s orders are finalized.")
        facts = {"count": len(finalized_at), "all": len(scene.orders)}
        key = f"done {len(finalized_at)}"
        yield _line(key, text % facts, finalized_at[-1], order=scene.finalized[-1])


def of_killed_finalizer(scene: KilledFinalizer, now: datetime) -> Iterator[Line]:
    """Tell story 3 as far as it went, at the database's time ``now``."""
    order, record = scene.order, scene.recovery
    if order is None or not (scene.hangs or record):
        return
    yield from _hanging(scene, order)
    if scene.hangs and order.finalize_progress_at:
        yield _silence(now - order.finalize_progress_at)
    if record:
        text = _(
            "recoverFinalizeStuck reset it after %(age)s s without progress. Proof that nobody"
            " holds it: %(proof)s. Should its finalizer wake up after all, epoch %(epoch)s fences"
            " it off."
        )
        facts = {
            "age": f"{record.evidence.get('age_s', 0):.0f}",
            "proof": record.evidence.get("proof", {}).get("how", ""),
            "epoch": record.after.get("epoch", ""),
        }
        yield _line("recovered", text % facts, record.at, audit=record)
        yield from _resumption(scene, order)


def _hanging(scene: KilledFinalizer, order: SplitOrder) -> Iterator[Line]:
    evidence = scene.recovery.evidence if scene.recovery else {}
    finalizer = evidence.get("finalizer") or order.finalize_owner
    progress_at = order.finalize_progress_at
    if evidence.get("progress_at"):
        progress_at = datetime.fromisoformat(evidence["progress_at"])
    first = [step.name for step in scene.steps if step.epoch == scene.steps[0].epoch]
    text = _("Order %(order)s hangs in progress: process %(pid)s is gone; steps done: %(done)s.")
    facts = {
        "order": order.number,
        "pid": finalizer.split(":")[-2] if ":" in finalizer else "?",
        "done": ", ".join(first) or "-",
    }
    yield _line("hangs", text % facts, progress_at, order=order)


def _silence(age: timedelta) -> Line:
    age_s = max(0, int(age.total_seconds()))
    text = _("No progress for %(age)s s; after %(limit)s s it counts as stuck.")
    key = f"silent {min(age_s, STUCK_AFTER_S) // SILENCE_STEP_S}"
    return _line(key, text % {"age": age_s, "limit": STUCK_AFTER_S})


def _resumption(scene: KilledFinalizer, order: SplitOrder) -> Iterator[Line]:
    if order.finalized_at:
        text = _(
            "finalizeRetryWorker went on with %(next)s and finalized it; the steps done before"
            " were not repeated."
        )
        facts = {"next": _resumed_at(scene.steps)}
        yield _line("finalized", text % facts, order.finalized_at, order=order)
    if scene.movement and is_posted(scene.movement):
        text = _("The ledger has it once.")
        yield _line("posted", text, scene.movement.posted_at, entry=scene.movement)


def _resumed_at(steps: Sequence[FinalizeStep]) -> str:
    """Return the first step that was not the first finalizer's."""
    later = [step.name for step in steps if step.epoch != steps[0].epoch]
    return later[0] if later else ""
