"""Run django-q2's workers with this project's schedule."""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from recovery import sideport
from recovery.cluster import GuardedCluster
from recovery.commands import OperatorCommand, UsageError

HIGHEST_PORT = 65_535


class Command(OperatorCommand):
    """Run the workers and tick the schedule, until SIGTERM or Ctrl-C."""

    help = "Run django-q2's workers and tick the jobs' schedule, until SIGTERM or Ctrl-C."

    def add_options(self, parser: CommandParser) -> None:
        """Take where to answer probes."""
        parser.add_argument(
            "--metrics-port", type=int, metavar="N", help="answer /metrics and /readyz on port N"
        )
        parser.add_argument(
            "--metrics-host",
            default="0.0.0.0",  # noqa: S104 - scrapers are elsewhere
            metavar="ADDRESS",
            help="default: all of IPv4",
        )

    def run(self, **options: Any) -> int:
        """Serve until stopped; a second signal ends at once."""
        cluster = GuardedCluster(_sideport(options["metrics_host"], options["metrics_port"]))
        status = cluster.serve()
        self.document = {
            "stopped_by": cluster.stopped_by,
            "ticks": cluster.ticker.ticks,
            "restarts": cluster.restarts,
        }
        return status


def _sideport(host: str, port: int | None) -> sideport.SidePort | None:
    if port is None:
        return None
    if not 0 < port <= HIGHEST_PORT:
        raise UsageError(f"--metrics-port {port}: a port is a number from 1 to {HIGHEST_PORT}")
    try:
        return sideport.SidePort(sideport.listening(host, port))
    except OSError as error:
        raise CommandError(
            f"--metrics-port {port} on {host} cannot be had: {error.strerror}; choose another one"
        ) from error
