"""For processes under libfaketime: sleep in a way that it can follow.

Python sleeps until a moment of the monotonic clock; libfaketime 0.9.10 shifts that moment even
where it is told to leave this clock alone, and the kernel refuses it.
"""

import select
import time
from typing import SupportsIndex


def _sleep(seconds: SupportsIndex | float) -> None:
    select.select([], [], [], float(seconds))


time.sleep = _sleep
