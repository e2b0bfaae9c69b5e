"""Real finalizers in processes of their own, on the test's database."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection

DEADLINE_S = 150


def database_url() -> str:
    """Return the URL of the database the test uses."""
    config = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{config['NAME']}"
    login = f"{config['USER']}:{config['PASSWORD']}@{config['HOST']}:{config['PORT']}"
    return f"mysql://{login}/{config['NAME']}"


def manage(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``manage.py`` with ``arguments``."""
    return python("manage.py", *arguments, **environment)


def python(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python with ``arguments``, in the directory of the project."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=settings.BASE_DIR,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings.base",
            "DEBUG": "true",
            "REDIS_URL": "",
            "DATABASE_URL": database_url(),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever starts the tests in the background leaves Ctrl-C ignored, and so would we.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Wait for ``process``; return its status and the JSON it printed."""
    out, _errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, json.loads(out) if out.strip() else {}


def wait_until(condition: Callable[[], Any], *, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true value of ``condition``, or fail."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("the condition did not come true in time")


def is_stopped(process: subprocess.Popen[str]) -> bool:
    """Tell whether ``process`` was stopped by SIGSTOP."""
    assert process.poll() is None, process.communicate()
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"
