"""Measure what was asked for, print a table a section, keep the figures as JSON."""

import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import django

from benchmarks import machine
from benchmarks.options import SECTIONS, Options, parse
from benchmarks.report import Table


def main(arguments: Sequence[str]) -> int:
    """Measure; 2 where nothing can be measured here. A bar that is missed fails nothing."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "settings.base",
            "PROMETHEUS_MULTIPROC_DIR": str(Path(place) / "metrics"),
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "WARNING"),
            "LOG_FORMAT": "text",
        }
        django.setup()
        return _measure_all(options)


def _measure_all(options: Options) -> int:
    from benchmarks import database

    try:
        database.prepare()
    except database.NotScratchError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    roomy = database.give_memory(options.buffer_pool_mib)
    memory = f"a buffer pool of {options.buffer_pool_mib} MiB" if roomy else "its usual memory"
    _say(f"{_headline()}; MariaDB with {memory}\n")
    document: dict[str, Any] = {"machine": _machine(), "sections": []}
    for name in options.only:
        database.empty()
        started = time.monotonic()
        others = machine.Others(database.server_pids().values())
        table = _measure(name, options)
        table.notes.append(
            f"took {time.monotonic() - started:.0f} s; other programs took {others.share():.0%}"
            f" of {machine.cores()} cores meanwhile"
        )
        _say(f"{table.text()}\n")
        document["sections"].append(table.as_dict())
        _keep(document, options.output)
    _say(f"the figures are in {options.output}")
    return 0


def _measure(name: str, options: Options) -> Table:
    table: Table = importlib.import_module(SECTIONS[name]).measure(options)
    return table


def _machine() -> dict[str, Any]:
    from django.db import connection

    return {
        "cores": machine.cores(),
        "python": platform.python_version(),
        "django": django.get_version(),
        "database": ".".join(map(str, connection.mysql_version)),  # type: ignore[attr-defined]
    }


def _headline() -> str:
    facts = ", ".join(f"{name} {value}" for name, value in _machine().items())
    return f"{facts}; medians over rounds, ratios to the floor of the same rounds"


def _keep(document: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
