"""Processes that measurements start: each sets up, says so, waits for a word and works."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import django

from benchmarks.processes import READY


def set_up() -> None:
    """Set Django up and connect to the database."""
    django.setup()
    from django.db import connection

    connection.ensure_connection()


def obey(work: Callable[[], Any]) -> None:
    """Say that all is set up, wait for a word, work and print the result."""
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(json.dumps(work()))


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Return the seconds ``work`` took, and the processor's time it used in this process."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
