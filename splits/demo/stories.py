"""Play the three stories: break something for real, and let the product deal with it."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ledger import accounts
from recovery.audit import cli_actor
from recovery.clock import db_now
from splits.demo import scenes, tales
from splits.demo.boards import deliver
from splits.demo.scenes import CLOSED_ACCOUNT, CLOSED_SKU, CLOSED_UNIT, Role, State, number_of
from splits.demo.stage import Stage
from splits.leash import KILLED
from splits.models import StepName

OTHER_SKU, NOTIFY_SKU, KILLED_SKU = "SHEET-40x40", "SHEET-10x10", "SHEET-100x100"
NOTIFY_ORDERS = 4
DOWN_AFTER_OPENING_S = 3
KILLED_AFTER = StepName.CREATE_OUTPUTS
KILL_TRIES = 5

Scene = scenes.ClosedAccount | scenes.DeafEndpoint | scenes.KilledFinalizer


class UnkilledError(Exception):
    """The workers were always faster than the finalizer that was to be killed."""


@dataclass(frozen=True)
class Story:
    """One thing that breaks."""

    key: str
    title: Any
    look: Callable[[str], Scene]
    play: Callable[[Stage, int], Scene]


def _closed(endpoint: str) -> scenes.ClosedAccount:
    return scenes.read(endpoint).closed


def _deaf(endpoint: str) -> scenes.DeafEndpoint:
    return scenes.read(endpoint).deaf


def _killed(endpoint: str) -> scenes.KilledFinalizer:
    return scenes.read(endpoint).killed


def play_closed_account(stage: Stage, take: int) -> Scene:
    """Close the account of a SKU, let a board of that SKU arrive, and one of another SKU."""
    reason = _("demo: the SKU was phased out")
    accounts.close(CLOSED_ACCOUNT, CLOSED_UNIT, actor=cli_actor(), reason=reason)
    deliver(
        {number_of(take, Role.CLOSED): CLOSED_SKU, number_of(take, Role.OTHER): OTHER_SKU},
    )
    return stage.follow(
        partial(_closed, stage.endpoint), tale=tales.of_closed_account, until=_is_over
    )


def _is_over(scene: Scene) -> bool:
    return scene.state in (State.PLAYED, State.OTHERWISE)


def play_deaf_endpoint(stage: Stage, take: int) -> Scene:
    """Take the endpoint away, submit orders, and bring it back once the breaker is open."""
    stage.tell(_("The completion endpoint, a stand-in for an ERP, is switched off."))
    stage.switch(False)
    orders = range(1, NOTIFY_ORDERS + 1)
    deliver({number_of(take, Role.NOTIFY, nth): NOTIFY_SKU for nth in orders})
    look = partial(_deaf, stage.endpoint)
    stage.follow(look, tale=tales.of_deaf_endpoint, until=_have_waited)
    stage.posts.clear()
    stage.switch(True)
    text = _("The endpoint is back. Nobody knows yet: the breaker lets one order try, in its time.")
    stage.tell(text)
    return stage.follow(look, tale=partial(_with_posts, stage), until=_is_told)


def _have_waited(scene: scenes.DeafEndpoint) -> bool:
    """Tell whether the breaker has been open for a while, and orders wait at it.

    The one whose failure opened it still backs off: the next try finds the endpoint back.
    """
    opened_at = scene.breaker.opened_at if scene.breaker else None
    if opened_at is None:
        return _is_over(scene)
    open_s = (db_now() - opened_at).total_seconds()
    return open_s >= DOWN_AFTER_OPENING_S and len(scene.uncharged) >= len(scene.orders) - 1


def _with_posts(stage: Stage, scene: scenes.DeafEndpoint) -> Iterator[tales.Line]:
    """Tell of the first call before the breaker closes by it, of the others after that."""
    yield from _posts(stage, 1)
    for line in tales.of_deaf_endpoint(scene):
        yield line
        if line.key == "closed":
            yield from _posts(stage, NOTIFY_ORDERS)


def _posts(stage: Stage, limit: int) -> Iterator[tales.Line]:
    for number in list(stage.posts)[:limit]:
        text = _("The endpoint is told of %(order)s and answers 200.") % {"order": number}
        yield tales.Line(f"post {number}", text)


def _is_told(scene: scenes.DeafEndpoint) -> bool:
    return _is_over(scene) and not scene.is_open


def play_killed_finalizer(stage: Stage, take: int) -> Scene:
    """Kill a real finalizer between two steps; the jobs do the rest."""
    _kill_a_finalizer(stage, take)
    return stage.follow(
        partial(_killed, stage.endpoint),
        tale=lambda scene: tales.of_killed_finalizer(scene, db_now()),
        until=_is_over,
    )


def _kill_a_finalizer(stage: Stage, take: int) -> None:
    """Try until the finalizer had the order before the workers; raise UnkilledError."""
    fault = f"finalize.after_step.{KILLED_AFTER}=crash"
    for nth in range(1, KILL_TRIES + 1):
        number = number_of(take, Role.KILLED, nth)
        deliver({number: KILLED_SKU}, finalize=False)
        text = _("A process starts `manage.py finalize %(order)s`, with %(fault)s.")
        stage.tell(text % {"order": number, "fault": f"RECOVERY_FAULTPOINTS={fault}"})
        status = stage.run_manage("finalizer", "finalize", number, RECOVERY_FAULTPOINTS=fault)
        if status == KILLED + signal.SIGKILL:
            stage.tell(_("It is dead, as by kill -9: killed by signal 9, nothing cleaned up."))
            return
        stage.tell(_("The workers were faster and took the order; another one is tried."))
    raise UnkilledError


STORIES = (
    Story(
        "closed_account",
        gettext_lazy("A closed account fills the DLQ"),
        _closed,
        play_closed_account,
    ),
    Story(
        "unreachable_webhook",
        gettext_lazy("An unreachable webhook"),
        _deaf,
        play_deaf_endpoint,
    ),
    Story(
        "killed_finalizer",
        gettext_lazy("A finalizer killed half-way"),
        _killed,
        play_killed_finalizer,
    ),
)


def take_after(scene: Scene) -> int:
    """Return the take to play next: a new one, unless the newest one has hardly begun."""
    return max(1, scene.take if scene.state is State.WAITING else scene.take + 1)


def outcome(scene: Scene) -> dict[str, Any]:
    """Return what a story came to, as ``--json`` prints it."""
    orders = scene.orders if isinstance(scene, scenes.DeafEndpoint) else [scene.order]
    facts: dict[str, Any] = {
        "outcome": scene.state.value,
        "take": scene.take,
        "orders": [order.number for order in orders if order],
    }
    if isinstance(scene, scenes.ClosedAccount) and scene.receipt:
        facts["dead_entry"] = scene.receipt.pk
    if isinstance(scene, scenes.DeafEndpoint):
        facts["failed_calls"] = len(scene.failures)
    if isinstance(scene, scenes.KilledFinalizer) and scene.recovery:
        facts["audit_record"] = scene.recovery.pk
    return facts
