"""A real finalizer in a thread of its own that stops at every fault point until told to go on."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

from django.db import OperationalError, connection

from splits import finalize as module
from splits.finalize import Outcome
from tests.factories import AUTHOR
from tests.machines import Killed

DEADLINE_S = 600
"""Others may be driven meanwhile, and the machine may be slow: the test has a limit of its own."""
IN_STEP = "finalize.in_step."
_here = threading.local()


@contextmanager
def stepping() -> Iterator[None]:
    """Let finalizers stop; those of other threads run through."""
    with mock.patch.object(module, "faultpoint", _visit):
        yield


def _visit(name: str) -> None:
    finalizer = getattr(_here, "finalizer", None)
    if finalizer is not None:
        finalizer.visit(name)


class Finalizer:
    """One attempt to finalize an order; ``at`` is the point where it stands, "" at its end."""

    def __init__(self, order_id: int, *, now: bool) -> None:
        """Claim the order and go to the first point; ``at`` is "" where it is not to be had."""
        self.at = ""
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self._inside: BaseException | None = None
        self._stop_inside = False
        self._lose_answer = False
        self._orders: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(order_id, now), daemon=True)
        self._thread.start()
        self._await()

    def _run(self, order_id: int, now: bool) -> None:
        _here.finalizer = self
        commit = connection.commit
        try:
            setattr(connection, "commit", partial(self._commit, commit))  # noqa: B010
            self.outcome = module.finalize(order_id, author=AUTHOR, now=now)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            connection.close()
            self._news.put("")

    def _commit(self, commit: Callable[[], None]) -> None:
        commit()
        lost, self._lose_answer = self._lose_answer, False
        if lost:
            raise OperationalError(2013, "lost connection")

    def visit(self, name: str) -> None:
        """Stop at a fault point, in the finalizer's thread."""
        if name.startswith(IN_STEP) and not self._stop_inside:
            error, self._inside = self._inside, None
        else:
            self._news.put(name.removeprefix("finalize."))
            error = self._orders.get(timeout=DEADLINE_S)
        if error is not None:
            raise error

    def _await(self) -> None:
        self.at = self._news.get(timeout=DEADLINE_S)
        if not self.at:
            self._thread.join(DEADLINE_S)

    def go(self) -> None:
        """Go on to the next point outside a transaction, or to the end."""
        self._orders.put(None)
        self._await()

    def fail(self, error: BaseException) -> None:
        """Meet ``error`` here."""
        self._orders.put(error)
        self._await()

    def fail_inside(self, error: BaseException) -> None:
        """Go on, and meet ``error`` inside the step's transaction, if it gets there."""
        self._inside = error
        self.go()
        self._inside = None

    def go_unanswered(self) -> None:
        """Go on; the next COMMIT happens, and its answer is lost."""
        self._lose_answer = True
        self.go()
        self._lose_answer = False

    def go_inside(self) -> None:
        """Go on until just before the commit of the step, its row locked."""
        self._stop_inside = True
        self.go()
        self._stop_inside = False

    def kill(self) -> None:
        """End here as by kill -9."""
        if self.at:
            self.fail(Killed())
