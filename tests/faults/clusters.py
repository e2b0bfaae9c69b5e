"""A real cluster, seen from outside: its processes by their parts, killed and stopped."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from tests.processes import Finished, Started, is_stopped
from tests.waiting import eventually


class Cluster:
    """A ``qcluster`` that runs."""

    def __init__(self, started: Started, *, complete: bool = True) -> None:
        """Take a cluster that was started; wait until it is ``complete``."""
        self.started = started
        if complete:
            eventually(self.is_complete)

    def is_complete(self) -> bool:
        """Tell whether parent, sentinel, workers, monitor and pusher run."""
        return len(self.started.family()) == settings.Q_CLUSTER["workers"] + 4

    @property
    def parent(self) -> int:
        """Return the process id of the parent."""
        return self.started.pid

    @property
    def sentinel(self) -> int:
        """Return the process id of the sentinel."""
        (child,) = self.children(self.parent)
        return child

    def children(self, parent: int) -> list[int]:
        """Return the children of ``parent`` in the order of their birth."""
        return sorted(
            (pid for pid in self.started.family() if _stat(pid)[1] == str(parent)),
            key=lambda pid: (int(_stat(pid)[19]), pid),
        )

    def workers(self) -> list[int]:
        """Return the process ids of the workers, which are forked before monitor and pusher.

        So long as none of them was replaced.
        """
        return self.children(self.sentinel)[: settings.Q_CLUSTER["workers"]]

    @property
    def pusher(self) -> int:
        """Return the process id of the pusher, which is forked last."""
        return self.children(self.sentinel)[-1]

    def forked(self) -> list[int]:
        """Return what a sentinel forked, if there is one, by birth: workers, monitor, pusher."""
        return [pid for sentinel in self.children(self.parent) for pid in self.children(sentinel)]

    def kill(self, pid: int) -> None:
        """End a process at once; it is gone."""
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: pid not in self.started.family())

    def resume(self) -> None:
        """Let go on whoever was stopped by SIGSTOP, at a fault point."""
        for pid in filter(is_stopped, self.forked()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _goes_on_to_its_end(self) -> bool:
        self.resume()
        return self.started.has_ended()

    def stop(self, *, resuming: bool = False) -> Finished:
        """Stop in order; nothing is left of it.

        Whoever is stopped at a fault point is resumed once the cluster was told.
        """
        self.started.signal(signal.SIGTERM)
        if resuming:
            eventually(lambda: "cluster_stopping" in self.started.printed()[1])
            eventually(self._goes_on_to_its_end)
        finished = self.started.finish()
        assert finished.returncode == 0, finished.stderr
        assert not self.started.family()
        return finished


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X"] + ["0"] * 30
