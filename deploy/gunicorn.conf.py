"""Gunicorn's settings: its records in the structure of all others. Run it from the project's root.

``gunicorn -c deploy/gunicorn.conf.py``; what else there is to set, set by its own options.
"""

import logging
from datetime import timedelta
from typing import Any

from gunicorn import glogging

from settings.base import LOGGING
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


wsgi_app = "settings.wsgi"
logger_class = StructuredLogger
timeout = 120  # a plan of 100,000 rows is frozen within its request
