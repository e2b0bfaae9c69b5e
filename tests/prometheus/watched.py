"""A web server and a worker's host that a real Prometheus scrapes."""

import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

from recovery import schedules
from tests import servers
from tests.processes import Finished, Manage, Started
from tests.prometheus.watching import TOKEN, prometheus
from tests.web import Web

HASTE = {
    "METRICS_TOKEN": TOKEN,
    "JOB_METRICS_PERIOD_SEC": "1",
    "JOB_OUTBOX_PERIOD_SEC": "1",
    "JOB_FINALIZE_PERIOD_SEC": "1",
    "JOB_STUCK_PERIOD_SEC": "1",
    "JOB_PLANS_PERIOD_SEC": "1",
    "JOB_SEAL_PERIOD_SEC": "1",
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC": "3",
    "JOB_OUTBOX_MAX_ATTEMPTS": "1",
    "JOB_FINALIZE_RETRY_LIMIT": "1",
    "JOB_LOCK_TTL_SEC": "4",
    "SPLIT_COMPLETION_TIMEOUT_SEC": "1",
    "DATABASE_READ_TIMEOUT_SEC": "6",
    "SECURE_SSL_REDIRECT": "false",
    "LOG_LEVEL": "WARNING",
}
"""What takes minutes takes seconds."""


class Watched:
    """A web server, a worker's host and the Prometheus that scrapes both."""

    def __init__(self, manage: Manage, folder: Path, stack: ExitStack, **environment: str) -> None:
        """Start web server and Prometheus; no worker yet."""
        self.manage = manage
        self.env = HASTE | environment
        self.hosts = {it: str(folder / it) for it in ("web", "worker")}
        self.worker_port = servers.free_port()
        self.cluster: Started | None = None
        schedules.ensure_rows()
        self.web = Web(manage, **self.env, PROMETHEUS_MULTIPROC_DIR=self.hosts["web"])
        self.prometheus = stack.enter_context(
            prometheus(web=self.web.port, worker=self.worker_port)
        )

    def work(self, **environment: str) -> None:
        """Start a cluster."""
        self.cluster = self.manage.start(
            "qcluster", "--metrics-port", str(self.worker_port),
            env=self.env | environment | {"PROMETHEUS_MULTIPROC_DIR": self.hosts["worker"]},
        )  # fmt: skip

    def kill(self) -> None:
        """End the cluster at once, whole."""
        assert self.cluster is not None, "no cluster was started"
        for pid in self.cluster.family():
            with suppress(ProcessLookupError):  # it went with its parent
                os.kill(pid, signal.SIGKILL)

    def run(self, *arguments: str, **environment: str) -> Finished:
        """Run a command on the worker's host."""
        return self.start(*arguments, **environment).finish()

    def start(self, *arguments: str, **environment: str) -> Started:
        """Start a command on the worker's host."""
        place = {"PROMETHEUS_MULTIPROC_DIR": self.hosts["worker"]}
        return self.manage.start(*arguments, env=self.env | environment | place)
