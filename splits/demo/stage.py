"""What the stories are played on: processes, endpoint, terminal, and patience."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from django.conf import settings
from django.utils.translation import gettext as _

from recovery.clock import db_now
from splits.demo.progress import paused_jobs, what_hangs
from splits.demo.tales import Line, clock
from splits.processes import Children

T = TypeVar("T")

LOOK_EVERY_S = 0.2
STALL_DEADLINE_S = 120.0


class StalledError(Exception):
    """Nothing has moved for two minutes."""

    def __init__(self) -> None:
        """Say what waits, and where to look."""
        text = _(
            "Nothing has moved for two minutes. Look into %(log)s, then start again."
            " Waiting: %(what)s"
        )
        log = Path(settings.VAR_DIR) / "demo-qcluster.log"
        super().__init__(text % {"log": log, "what": what_hangs() or "-"})


class Patience:
    """Waits as long as something moves, or somebody has paused a job."""

    def __init__(self, say: Callable[[str], object]) -> None:
        """Begin to wait; ``say`` is told which jobs are paused."""
        self._say = say
        self._paused: list[str] = []
        self.moved()

    def moved(self) -> None:
        """Note that something moved."""
        self._moved_at = time.monotonic()

    def check(self) -> None:
        """Go on waiting, or raise StalledError."""
        if self._paused_now():
            self.moved()
            return
        if time.monotonic() - self._moved_at >= STALL_DEADLINE_S:
            raise StalledError

    def _paused_now(self) -> list[str]:
        paused = paused_jobs()
        if paused and paused != self._paused:
            text = _("Paused: %(jobs)s. Resume in the admin, under Jobs, to let the demo go on.")
            self._say(text % {"jobs": ", ".join(paused)})
        self._paused = paused
        return paused


@dataclass
class Stage:
    """Where a story is played."""

    children: Children
    say: Callable[[str], object]
    endpoint: str
    """The breaker's name of the completion endpoint."""
    switch: Callable[[bool], object]
    """Turns the completion endpoint on and off."""
    logs: Path
    posts: deque[str] = field(default_factory=deque)
    """Numbers of the orders that the endpoint was told of."""
    told: set[str] = field(default_factory=set)

    def tell(self, text: str) -> None:
        """Print something that happens now, with the time of day."""
        self.say(f"{clock(db_now())}  {text}")

    def tell_new(self, lines: Iterable[Line]) -> bool:
        """Print the lines that were not printed yet; False: there were none."""
        before = len(self.told)
        for line in lines:
            if line.key not in self.told:
                self.told.add(line.key)
                self.tell(line.text)
        return len(self.told) > before

    def follow(
        self,
        look: Callable[[], T],
        *,
        tale: Callable[[T], Iterable[Line]],
        until: Callable[[T], bool],
    ) -> T:
        """Print what happens, line by line, until ``until`` holds of what ``look`` sees.

        Raises StalledError, ChildDiedError.
        """
        patience = Patience(self.tell)
        while True:
            self.children.require_alive()
            seen = look()
            if self.tell_new(tale(seen)):
                patience.moved()
            if until(seen):
                return seen
            patience.check()
            time.sleep(LOOK_EVERY_S)

    def run_manage(self, name: str, *arguments: str, **environ: str) -> int:
        """Run ``manage.py`` in a process of its own; return its status, 128 + signal if killed."""
        command = [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), *arguments]
        log = self.logs / f"demo-{name}.log"
        return self.children.run(name, command, log=log, environ=environ)
