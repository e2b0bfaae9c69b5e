"""Settings under which some orders kill the worker that makes their child lots.

The worker ends by itself, as by a segmentation fault, and the next time for want of memory.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.apps import AppConfig

from settings.base import *  # noqa: F403
from settings.base import INSTALLED_APPS as INSTALLED

PREFIX = "DEADLY-"
CGROUPS = Path("/sys/fs/cgroup/memory")
MEMORY_BYTES = 128 * 1024 * 1024
SEGMENTATION_FAULT = 139


class DeadlyConfig(AppConfig):
    """Puts a deadly function in the place of one."""

    name = "tests.faults.deadly"
    label = "deadly"

    def ready(self) -> None:
        """Wrap what makes the lots, of one order or of many."""
        from splits import steps

        outputs_of = steps.outputs_of

        def outputs_or_die(order: Any) -> Any:
            if order.number.startswith(PREFIX):
                die(order.finalize_attempts)
            return outputs_of(order)

        steps.outputs_of = outputs_or_die


def die(attempt: int) -> None:
    """End this process at once, or run out of memory where that can be had."""
    if attempt % 2 == 0:
        with suppress(OSError):
            eat()
    os._exit(SEGMENTATION_FAULT)


def eat() -> None:
    """Take memory until the kernel kills this process, in a control group of its own."""
    group = CGROUPS / f"deadly-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(MEMORY_BYTES))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    eaten = []
    while True:
        eaten.append(bytearray(1024 * 1024))


INSTALLED_APPS = [*INSTALLED, "tests.faults.deadly.DeadlyConfig"]
