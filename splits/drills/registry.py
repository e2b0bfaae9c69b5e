"""The only list of drills: each registers itself, in a module of ``splits.drills.cases``."""

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from splits.drills import cases
from splits.drills.exercise import Exercise


@dataclass(frozen=True)
class Case:
    """A registered drill."""

    name: str
    play: Callable[[Exercise], None]
    jobs: Sequence[str]
    """It is refused while one of these is paused."""
    steps: Sequence[str]
    """What it does, for a dry run."""
    unfit: Callable[[], str]
    """Returns why there is nothing to drill here; empty: there is."""

    @property
    def summary(self) -> str:
        """Return what it does, in one line."""
        return (self.play.__doc__ or "").strip().partition("\n")[0]


_cases: dict[str, Case] = {}


def drill(
    name: str,
    *,
    jobs: Sequence[str],
    steps: Sequence[str],
    unfit: Callable[[], str] = lambda: "",
) -> Callable[[Callable[[Exercise], None]], Callable[[Exercise], None]]:
    """Register the decorated function as drill ``name``; see ``Case``."""

    def register(play: Callable[[Exercise], None]) -> Callable[[Exercise], None]:
        _cases[name] = Case(name, play, jobs, steps, unfit)
        return play

    return register


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(cases.__path__):
        import_module(f"{cases.__name__}.{module.name}")


def all_cases() -> list[Case]:
    """Return every drill by name."""
    _discover()
    return [_cases[name] for name in sorted(_cases)]


def get(name: str) -> Case | None:
    """Return the drill called ``name``, if there is one."""
    return next((case for case in all_cases() if case.name == name), None)
