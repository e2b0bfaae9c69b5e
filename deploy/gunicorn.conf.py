"""Gunicorn's settings: its records in the structure of all others. Run it from the project's root.

``gunicorn -c deploy/gunicorn.conf.py``. Of the environment: ``WEB_CONCURRENCY`` (processes, 2),
``WEB_THREADS`` (each, 4), ``WEB_BIND`` (127.0.0.1:8000); all else by gunicorn's own options.
"""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

from gunicorn import glogging

from settings.base import LOGGING
from settings.env import Env
from settings.logs import configure


class StructuredLogger(glogging.Logger):
    """Logs by the project's settings; requests as fields, where an access log is asked for."""

    def setup(self, cfg: Any) -> None:
        """Set up the project's logging in the master; gunicorn's handlers take its format."""
        configure(LOGGING)
        super().setup(cfg)
        (ours,) = logging.root.handlers
        for log in (self.error_log, self.access_log):
            for handler in log.handlers:
                handler.setFormatter(ours.formatter)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Log one request; its query, which may hold what is private, is left out."""
        if self.access_log_enabled:
            self.access_log.info("request", extra=_facts(resp, environ, request_time))


def _facts(resp: Any, environ: dict[str, Any], request_time: timedelta) -> dict[str, Any]:
    return {
        "method": environ.get("REQUEST_METHOD"),
        "path": environ.get("PATH_INFO"),
        "status_code": int(str(resp.status).partition(" ")[0]),
        "bytes": resp.sent,
        "duration_s": round(request_time.total_seconds(), 3),
        "client": environ.get("REMOTE_ADDR"),
    }


def pre_fork(_server: Any, _worker: Any) -> None:
    """Close what the master has open: a connection that two processes use tells both lies.

    In the master, before the fork. A copy that is closed in the child would close the master's.
    Redis clients notice a fork by themselves.
    """
    from django.db import connections

    connections.close_all()


wsgi_app = "settings.wsgi"
logger_class = StructuredLogger
_asked = Env()
bind = _asked.text("WEB_BIND") or "127.0.0.1:8000"
workers = _asked.integer("WEB_CONCURRENCY", 2, low=1, high=256)
worker_class, threads = "gthread", _asked.integer("WEB_THREADS", 4, low=1, high=64)
_asked.finish()
preload_app = True  # what is wrong with the settings ends the start, once; code is in memory once
timeout = 120  # a plan of 100,000 rows is frozen within its request
graceful_timeout = 30  # so long requests may take to end after SIGTERM; the unit waits for 45 s
keepalive = 75  # longer than the proxy keeps its connections
max_requests, max_requests_jitter = 20_000, 2_000
limit_request_line = 8190  # 300 rows that were ticked, with the log-in in between
control_socket_disable = True  # signals suffice, and a service has no home to put it in
if Path("/dev/shm").is_dir():  # noqa: S108 - heartbeats of workers; on a slow disk they are late
    worker_tmp_dir = "/dev/shm"  # noqa: S108
# Files that dead workers counted in are merged by whoever reads next (recovery.tallies).
