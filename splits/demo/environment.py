"""What the demo's processes run with: periods and limits sized for a reader's patience."""

import os
from collections.abc import Mapping

from django.conf import settings
from django.utils.translation import gettext as _

from settings.env import Env

HOST = "127.0.0.1"
ENDPOINT_PATH = "/split-completed"
HIGHEST_PORT = 65_535

PERIOD_S = 2
BACKOFF_BASE_S = 2
OUTBOX_ATTEMPTS = 4
FINALIZE_ATTEMPTS = 5
LOCK_TTL_S = 5
STUCK_AFTER_S = 13
"""Above the endpoint's time-out and twice the lock's TTL: a healthy order is never reset."""
STUCK_PERIOD_S = 5
BREAKER_FAILURES = 5
BREAKER_OPEN_S = 6
ENDPOINT_TIMEOUT_S = 2

SIZED = {
    "JOB_OUTBOX_PERIOD_SEC": PERIOD_S,
    "JOB_FINALIZE_PERIOD_SEC": PERIOD_S,
    "JOB_STUCK_PERIOD_SEC": STUCK_PERIOD_S,
    "JOB_METRICS_PERIOD_SEC": STUCK_PERIOD_S,
    "JOB_BACKOFF_BASE_SEC": BACKOFF_BASE_S,
    "JOB_OUTBOX_MAX_ATTEMPTS": OUTBOX_ATTEMPTS,
    "JOB_FINALIZE_RETRY_LIMIT": FINALIZE_ATTEMPTS,
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC": STUCK_AFTER_S,
    "JOB_LOCK_TTL_SEC": LOCK_TTL_S,
    "SPLIT_COMPLETION_TIMEOUT_SEC": ENDPOINT_TIMEOUT_S,
    "SPLIT_COMPLETION_BREAKER_FAILURES": BREAKER_FAILURES,
    "SPLIT_COMPLETION_BREAKER_OPEN_SEC": BREAKER_OPEN_S,
}


def endpoint_origin(port: int) -> str:
    """Return what names the breaker of the completion endpoint on ``port``."""
    return f"http://{HOST}:{port}"


def wanted_ports(env: Env) -> tuple[int, int]:
    """Return the ports of PORT and ENDPOINT_PORT: 8000 and the next one, unless said otherwise.

    What is wrong with them is in ``env.wrong``.
    """
    port = env.integer("PORT", 8000, low=1, high=HIGHEST_PORT)
    beside = port + 1 if port < HIGHEST_PORT else port - 1
    return port, env.integer("ENDPOINT_PORT", beside, low=1, high=HIGHEST_PORT)


def environ(endpoint_port: int) -> dict[str, str]:
    """Return the environment of the demo's processes; the demo's own sizes win."""
    sized = {key: f"{value:g}" for key, value in SIZED.items()}
    return {
        **os.environ,
        **sized,
        "DEBUG": "true",
        "DEMO": "true",
        "VAR_DIR": str(settings.VAR_DIR),
        "SPLIT_COMPLETION_WEBHOOK": endpoint_origin(endpoint_port) + ENDPOINT_PATH,
    }


def described(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each setting that the demo sizes, with what it is by default."""
    lines = []
    for key in SIZED:
        line = f"{key}={environment[key]}"
        if key not in os.environ:  # else this process does not know the default either
            line += _(" (default %(value)s)") % {"value": f"{getattr(settings, key):g}"}
        lines.append(line)
    return [*lines, f"SPLIT_COMPLETION_WEBHOOK={environment['SPLIT_COMPLETION_WEBHOOK']}"]
