"""How long to wait before the next attempt."""

import random
from collections.abc import Callable

from django.conf import settings

MAX_EXPONENT = 62


def delay_sec(attempt: int, *, draw: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait after failed attempt ``attempt`` (counted from 1).

    ``base * 2**(attempt-1)``, at most the cap, less a random share of up to
    ``JOB_BACKOFF_JITTER`` of it. The exponent is clamped before it can overflow.
    """
    exponent = min(max(attempt - 1, 0), MAX_EXPONENT)
    full = min(settings.JOB_BACKOFF_BASE_SEC * 2**exponent, settings.JOB_BACKOFF_CAP_SEC)
    return float(full - full * settings.JOB_BACKOFF_JITTER * draw())
