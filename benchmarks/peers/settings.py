"""The product's settings with the peers' at their best: connections kept, nothing asked twice."""

import os
from typing import Any

from settings.base import *  # noqa: F403
from settings.base import DATABASES, REDIS_URL

DATABASES["default"] |= {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False}

Q_CLUSTER: dict[str, Any] = {  # type: ignore[no-redef]
    "name": "peer",
    "redis": REDIS_URL,
    "workers": int(os.environ.get("QCLUSTER_WORKERS", "1")),
    "recycle": 1_000_000,
    "queue_limit": 1_000,
    "timeout": 60,
    "retry": 120,
    "save_limit": -1,
    "scheduler": False,
    "catch_up": False,
    "log_level": "WARNING",
}
