"""Run django-q2's workers with this project's schedule."""

from typing import Any

from recovery.cluster import GuardedCluster
from recovery.commands import OperatorCommand


class Command(OperatorCommand):
    """Run the workers and tick the schedule, until SIGTERM or Ctrl-C."""

    help = "Run django-q2's workers and tick the jobs' schedule, until SIGTERM or Ctrl-C."

    def run(self, **_options: Any) -> int:
        """Serve until stopped; a second signal ends at once."""
        cluster = GuardedCluster()
        status = cluster.serve()
        self.document = {
            "stopped_by": cluster.stopped_by,
            "ticks": cluster.ticker.ticks,
            "restarts": cluster.restarts,
        }
        return status
