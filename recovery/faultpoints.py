"""Named places where a test may break the process; off unless RECOVERY_FAULTPOINTS is set."""

import os
import signal
import time
from dataclasses import dataclass

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

ACTIONS = ("crash", "stop", "raise", "sleep")


class InjectedFaultError(Exception):
    """An error was injected at a fault point."""


@dataclass
class Fault:
    """What happens at one fault point, and at which of its visits."""

    name: str
    action: str
    seconds: float = 0.0
    only_visit: int = 0
    visits: int = 0


_plan: list[Fault] = []
_planned_for = ""


def faultpoint(name: str) -> None:
    """Do what RECOVERY_FAULTPOINTS asks for at ``name``; by default nothing."""
    if not settings.RECOVERY_FAULTPOINTS:
        return
    for fault in _faults():
        if fault.name == name or (
            fault.name.startswith("outbox.entry:") and name.startswith(fault.name)
        ):
            _visit(fault)


def planned(prefix: str) -> bool:
    """Tell whether RECOVERY_FAULTPOINTS asks for something at points of this prefix."""
    return any(fault.name.startswith(prefix) for fault in _faults())


def _faults() -> list[Fault]:
    global _plan, _planned_for
    if settings.RECOVERY_FAULTPOINTS != _planned_for:
        _plan = parse(settings.RECOVERY_FAULTPOINTS)
        _planned_for = settings.RECOVERY_FAULTPOINTS
    return _plan


def forget() -> None:
    """Forget the plan and the visits counted; the next visit is the first again."""
    global _plan, _planned_for
    _plan, _planned_for = [], ""


def parse(text: str) -> list[Fault]:
    """Return the faults of ``name=action[@N][,name=action]``; raise ImproperlyConfigured."""
    return [_parse_one(item.strip()) for item in text.split(",") if item.strip()]


def _parse_one(item: str) -> Fault:
    name, _, spec = item.rpartition("=")
    action, _, visit = spec.partition("@")
    action, _, seconds = action.partition(":")
    try:
        if not name or action not in ACTIONS or (action == "sleep") != bool(seconds):
            raise ValueError(item)
        return Fault(name, action, float(seconds or 0), int(visit or 0))
    except ValueError:
        raise ImproperlyConfigured(
            f"RECOVERY_FAULTPOINTS: {item!r} is not name=crash|stop|raise|sleep:SECONDS[@N]"
        ) from None


def _visit(fault: Fault) -> None:
    fault.visits += 1
    if fault.only_visit and fault.visits != fault.only_visit:
        return
    if fault.action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.action == "sleep":
        time.sleep(fault.seconds)
    else:
        raise InjectedFaultError(f"injected at {fault.name}")
