"""Run the whole system on the embedded database with real cut plans."""

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError

from ledger.models import OutboxEntry, Posting, Transaction
from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from settings.env import Env
from splits.cutplans import Fault
from splits.imports import Import, ImportStoppedError
from splits.models import Lot, OrderStatus, SplitOrder
from splits.processes import ChildDiedError, Children

HOST = "127.0.0.1"
USER = "demo"
SAMPLE = Path(__file__).resolve().parents[2] / "sample" / "cut_plans.csv"
PORT_PATIENCE_S = 10.0
WEB_DEADLINE_S = 60.0
STALL_DEADLINE_S = 120.0
LOOK_EVERY_S = 0.3
PLAIN_LINE_EVERY_S = 2.0
SHOWN = 5


class StalledError(Exception):
    """Nothing has moved for two minutes."""


@dataclass(frozen=True)
class Progress:
    """How far the work is."""

    finalized: int
    waiting: int
    failed: int
    posted: int
    pending: int

    @property
    def done(self) -> bool:
        """Tell whether nothing is left to do."""
        return not self.waiting and not self.pending

    def __str__(self) -> str:
        """Return one line for people."""
        return (
            f"{self.finalized} orders finalized, {self.waiting} waiting, {self.failed} failed;"
            f" {self.posted} ledger transactions posted, {self.pending} pending"
        )


def progress() -> Progress:
    """Return how far the work is by the database."""
    orders = SplitOrder.objects
    return Progress(
        finalized=orders.filter(status=OrderStatus.FINALIZED).count(),
        waiting=orders.filter(status=OrderStatus.READY).count(),
        failed=orders.filter(status__in=(OrderStatus.FAILED, OrderStatus.QUARANTINED)).count(),
        posted=Transaction.objects.count(),
        pending=OutboxEntry.objects.pending().count(),
    )


def what_hangs() -> str:
    """Return the first orders and entries that still wait, with their last error."""
    orders = SplitOrder.objects.filter(status=OrderStatus.READY).order_by("pk")[:SHOWN]
    entries = OutboxEntry.objects.pending().order_by("pk")[:SHOWN]
    lines = [f"  order {it.number}: {it.last_finalize_error or 'no error'}" for it in orders]
    lines += [f"  entry {it.event_key}: {it.last_error or 'no error'}" for it in entries]
    return "\n".join(lines)


def wanted_port() -> int:
    """Return the port of environment variable PORT, by default 8000; raise UsageError."""
    env = Env()
    port = env.integer("PORT", 8000, low=1, high=65_535)
    if env.wrong:
        raise UsageError(env.wrong[0])
    return port


def wait_for(condition: Callable[[], bool], *, deadline_s: float) -> bool:
    """Wait until ``condition`` holds; False: it did not in time."""
    until = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def is_free(port: int) -> bool:
    """Tell whether a server could listen on ``port``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Tell whether a server listens on ``port``."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def kept_password(path: Path) -> str:
    """Return the password kept in ``path``, made at the first call (mode 0600)."""
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(secrets.token_urlsafe(12))
    return path.read_text()


def ensure_admin(password: str) -> None:
    """Make the administrator ``demo``, or give it ``password`` again."""
    users = get_user_model().objects
    user = users.filter(username=USER).first() or users.create_superuser(USER, password=password)
    if not user.check_password(password):
        user.set_password(password)
        user.save(update_fields=["password"])


class Command(OperatorCommand):
    """Show the main job at work, until Ctrl-C."""

    help = "Import sample cut plans, finalize and post them on SQLite; serve the admin (PORT)."

    status = DONE

    def run(self, **_options: Any) -> int:
        """Run everything, print the summary, then serve until stopped."""
        self.require_embedded()
        self.port = wanted_port()
        self.var = Path(settings.VAR_DIR)
        if not wait_for(lambda: is_free(self.port), deadline_s=PORT_PATIENCE_S):
            raise CommandError(
                f"port {self.port} on {HOST} is in use; choose another one: PORT=8001 make demo"
            )
        signal.signal(signal.SIGTERM, self.interrupt)
        try:
            self.perform()
        except KeyboardInterrupt:
            self.farewell()
            return self.status
        except (ChildDiedError, StalledError, ImportStoppedError) as error:
            raise CommandError(str(error)) from error

    @staticmethod
    def require_embedded() -> None:
        """Raise UsageError where servers are configured: the demo is for a file of its own."""
        if settings.DATABASE_URL or settings.REDIS_URL:
            raise UsageError(
                "the demo runs on its own SQLite file: unset DATABASE_URL and REDIS_URL"
            )

    @staticmethod
    def interrupt(_signum: int, _frame: FrameType | None) -> NoReturn:
        """Stop as for Ctrl-C."""
        raise KeyboardInterrupt

    def perform(self) -> NoReturn:
        """Prepare, work, report, serve."""
        self.say(f"Preparing the database under {self.var}")
        call_command("migrate", verbosity=0, interactive=False)
        password = kept_password(self.var / "demo-password")
        ensure_admin(password)
        environ = {**os.environ, "DEBUG": "true"}
        with Children(cwd=settings.BASE_DIR, environ=environ) as children:
            self.start(children)
            task, rate = self.work(children)
            self.status = self.report(task, rate, password)
            while True:
                children.require_alive()
                time.sleep(LOOK_EVERY_S)

    def start(self, children: Children) -> None:
        """Start workers and web server."""
        manage = [sys.executable, str(Path(settings.BASE_DIR) / "manage.py")]
        self.logs = {name: self.var / f"demo-{name}.log" for name in ("qcluster", "web")}
        children.start("qcluster", [*manage, "qcluster"], log=self.logs["qcluster"])
        children.start(
            "web",
            [*manage, "runserver", "--noreload", f"{HOST}:{self.port}"],
            log=self.logs["web"],
        )
        for path in self.logs.values():
            self.say(f"Log: {path}")

        def serves() -> bool:
            children.require_alive()
            return answers(self.port)

        if not wait_for(serves, deadline_s=WEB_DEADLINE_S):
            raise StalledError(f"the web server does not answer; see {self.logs['web']}")

    def work(self, children: Children) -> tuple[Import, float]:
        """Import the sample and wait until all of it is posted; return postings a second, too."""
        began, before = time.monotonic(), Posting.objects.count()
        task = Import(finalize=True, on_fault=self.say_fault)
        with SAMPLE.open("rb") as file:
            task.run(file)
        known = " (known from an earlier start)" if task.skipped else ""
        self.say(f"{task.imported} orders imported, {task.skipped} skipped{known}")
        self.watch(children)
        return task, (Posting.objects.count() - before) / (time.monotonic() - began)

    def say_fault(self, fault: Fault) -> None:
        """Print why an order of the sample is refused."""
        self.say(f"row {fault.row} order {fault.order_number}: {fault.message}")

    def watch(self, children: Children) -> None:
        """Show progress until nothing is left to do; raise StalledError, ChildDiedError."""
        shown, moved_at = progress(), time.monotonic()
        said_at = 0.0
        while True:
            children.require_alive()
            now = progress()
            if now != shown:
                shown, moved_at = now, time.monotonic()
            if self.stdout.isatty() or now.done or time.monotonic() - said_at > PLAIN_LINE_EVERY_S:
                self.show(now)
                said_at = time.monotonic()
            if now.done:
                return
            if time.monotonic() - moved_at > STALL_DEADLINE_S:
                raise StalledError(f"{StalledError.__doc__} Still waiting:\n{what_hangs()}")
            time.sleep(LOOK_EVERY_S)

    def show(self, now: Progress) -> None:
        """Print a line of progress; on a terminal over the last one."""
        if self.as_json:
            return
        if self.stdout.isatty():
            self.stdout.write(f"\r\033[K{now}", ending="\n" if now.done else "")
        else:
            self.stdout.write(str(now))
        self.stdout.flush()

    def report(self, task: Import, rate: float, password: str) -> int:
        """Print what was done, what reconcile finds, and where to look."""
        now = progress()
        dead = OutboxEntry.objects.dead().count()
        children = Lot.objects.exclude(parent_order=None).count()
        self.say("")
        self.say(
            f"Orders: {task.imported} imported now, {task.skipped} known; {now.finalized} finalized"
        )
        self.say(f"Child lots: {children}")
        self.say(
            f"Ledger: {now.posted} transactions, {Posting.objects.count()} postings"
            f" ({rate:.0f} postings/s from the import to the last one)"
        )
        self.say(f"Dead entries (DLQ): {dead}")
        found = self.reconcile()
        url = f"http://{HOST}:{self.port}/admin/"
        self.say("")
        self.say(f"Look at: {url}")
        self.say(f"Log in as: {USER}, password {password} (kept in {self.var / 'demo-password'})")
        self.say("Ctrl-C stops it.")
        self.document = {**asdict(now), "dead": dead, "url": url, "agrees": found == DONE}
        if self.as_json:
            super().print_document()
        self.stdout.flush()
        return found

    def reconcile(self) -> int:
        """Print exactly what the reconcile command finds; return its exit status."""
        out = StringIO()
        try:
            call_command("reconcile", stdout=out)
            status = DONE
        except SystemExit as left:
            status = int(left.code or WRONG)
        self.say("Reconcile:")
        self.say(out.getvalue().rstrip())
        return status

    def farewell(self) -> None:
        """Say how to go on and how to forget."""
        self.say("")
        self.say("Stopped. `make demo` carries on where this one is; `make demo-clean` forgets it.")

    def print_document(self) -> None:
        """Print nothing more: the document came with the summary."""
