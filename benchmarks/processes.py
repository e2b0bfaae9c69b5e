"""Processes of a measurement: children that wait for a word, clusters that run meanwhile."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks import machine
from recovery.orphans import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 300.0
LOOK_EVERY_S = 0.02
GRACE_S = 40.0
READY = "ready"
LAST_LINES = 15


class ChildError(RuntimeError):
    """A process of the measurement ended in another way than it should."""


def wait_until(
    condition: Callable[[], object], what: str, *, deadline_s: float = DEADLINE_S
) -> None:
    """Wait until ``condition`` is true; raise TimeoutError that says ``what`` was waited for."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {deadline_s:g} s: {what}")
        time.sleep(LOOK_EVERY_S)


class Child:
    """``python -m MODULE`` that says when it is ready, waits for a word and ends with a result.

    Its side of it is ``benchmarks.children.obey``.
    """

    def __init__(
        self, module: str, *arguments: object, env: Mapping[str, str] | None = None
    ) -> None:
        """Start it."""
        self.module = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent(),
        )

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self.process.pid

    def ready(self) -> None:
        """Wait until it is set up."""
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != READY:
            raise ChildError(f"{self.module} did not start: status {self.process.wait()}")

    def go(self) -> None:
        """Let it work."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        """Wait for its end; return its result."""
        out, _ = self.process.communicate(timeout=DEADLINE_S)
        if self.process.returncode:
            raise ChildError(f"{self.module} ended with status {self.process.returncode}")
        return json.loads(out)


def run_together(children: Sequence[Child]) -> list[Any]:
    """Let children that are ready work at the same time; return their results."""
    for child in children:
        child.go()
    return [child.result() for child in children]


class Program:
    """A program that runs until it is told to stop; what it says is kept for its failure."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        """Start it."""
        self.arguments = arguments
        self.log = tempfile.TemporaryFile("a+")  # noqa: SIM115 - closed by stop
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self.process.pid

    def runs(self) -> bool:
        """Tell whether it runs; raise ChildError with its last words where it ended by itself."""
        status = self.process.poll()
        if status is not None:
            self.log.seek(0)
            words = "\n".join(self.log.read().splitlines()[-LAST_LINES:])
            raise ChildError(f"{self.arguments} ended with status {status}:\n{words}")
        return True

    def stop(self) -> None:
        """End it in order; what of it is left after a while is killed."""
        pids = machine.family(self.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


@contextmanager
def running(arguments: Sequence[str], env: Mapping[str, str]) -> Iterator[Program]:
    """Run a program meanwhile."""
    program = Program(arguments, env)
    try:
        yield program
    finally:
        program.stop()


@contextmanager
def qcluster(env: Mapping[str, str] | None = None) -> Iterator[Program]:
    """Run the product's cluster meanwhile, all its processes started."""
    from django.conf import settings

    with running(["manage.py", "qcluster"], {**os.environ, **(env or {})}) as program:
        count = settings.Q_CLUSTER["workers"] + 4  # parent, sentinel, pusher, monitor
        started = lambda: program.runs() and len(machine.family(program.pid)) >= count  # noqa: E731
        wait_until(started, "the cluster's workers start")
        yield program
