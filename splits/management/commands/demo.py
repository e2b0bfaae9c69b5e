"""Run the whole system on the embedded database with real cut plans, and break it."""

import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser
from django.utils.translation import gettext as _

from ledger.models import OutboxEntry, Posting
from recovery.clock import db_now
from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from settings.env import Env
from splits.cutplans import Fault
from splits.demo import environment, verdict
from splits.demo.boards import SAMPLE, RefusedBoardError
from splits.demo.deliveries import Deliveries
from splits.demo.endpoint import Endpoint, EndpointTakenError
from splits.demo.environment import HOST
from splits.demo.progress import Progress, progress
from splits.demo.scenes import State
from splits.demo.stage import Patience, Stage, StalledError
from splits.demo.stories import STORIES, Story, UnkilledError, outcome, take_after
from splits.demo.tales import clock
from splits.imports import Import, ImportStoppedError
from splits.models import Lot
from splits.processes import ChildDiedError, Children

USER = "demo"
PORT_PATIENCE_S = 10.0
WEB_DEADLINE_S = 60.0
LOOK_EVERY_S = 0.3
PLAIN_LINE_EVERY_S = 2.0
POSTS_KEPT = 1_000

EXPECTED_ERRORS = (
    ChildDiedError,
    StalledError,
    ImportStoppedError,
    RefusedBoardError,
    UnkilledError,
)


def wanted_ports() -> tuple[int, int]:
    """Return the ports of site and completion endpoint; raise UsageError."""
    env = Env()
    port, endpoint_port = environment.wanted_ports(env)
    if env.wrong:
        raise UsageError(env.wrong[0])
    if port == endpoint_port:
        raise UsageError(_("PORT and ENDPOINT_PORT must differ"))
    return port, endpoint_port


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
        path.touch(mode=0o600)
    password = path.read_text()
    if not password:  # or somebody stopped the first call
        password = secrets.token_urlsafe(12)
        path.write_text(password)
    return password


def ensure_admin(password: str) -> None:
    """Make the administrator ``demo``, or give it ``password`` again."""
    users = get_user_model().objects
    user = users.filter(username=USER).first() or users.create_superuser(USER, password=password)
    if not user.check_password(password):
        user.set_password(password)
        user.save(update_fields=["password"])


class Command(OperatorCommand):
    """Show the product at work and in trouble, until Ctrl-C."""

    help = (
        "Import sample cut plans, finalize and post them on SQLite; then break things in three"
        " stories and serve the site (PORT)."
    )

    status = DONE
    played = 0

    def add_options(self, parser: CommandParser) -> None:
        """Add --again."""
        parser.add_argument(
            "--again", action="store_true", help="play stories again that were played before"
        )

    def run(self, **options: Any) -> int:
        """Run everything, then serve until stopped."""
        self.require_embedded()
        self.port, self.endpoint_port = wanted_ports()
        self.again: bool = options["again"]
        self.var = Path(settings.VAR_DIR)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.interrupt)
        try:
            self.perform()
        except KeyboardInterrupt:
            self.farewell()
            return self.status
        except EXPECTED_ERRORS as error:
            raise CommandError(str(error)) from error

    @staticmethod
    def require_embedded() -> None:
        """Raise UsageError where servers are configured: the demo is for a file of its own."""
        if settings.DATABASE_URL or settings.REDIS_URL:
            raise UsageError(
                _("the demo runs on its own SQLite file: unset DATABASE_URL and REDIS_URL")
            )

    @staticmethod
    def interrupt(_signum: int, _frame: FrameType | None) -> NoReturn:
        """Stop in order; an impatient second Ctrl-C changes nothing about that."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt

    def perform(self) -> NoReturn:
        """Prepare, work, report, play, serve."""
        self.require_free_port()
        self.posts: deque[str] = deque(maxlen=POSTS_KEPT)
        with self.open_endpoint() as endpoint:
            self.prepare()
            self.environ = environment.environ(self.endpoint_port)
            with Children(cwd=settings.BASE_DIR, environ=self.environ) as children:
                try:
                    self.go_on(children, endpoint)
                except KeyboardInterrupt:
                    self.say(_("\nStopping …"))
                    raise

    def require_free_port(self) -> None:
        """Raise CommandError where somebody else has the site's port."""
        if not wait_for(lambda: is_free(self.port), deadline_s=PORT_PATIENCE_S):
            text = _("port %(port)s on %(host)s is in use; choose another one: PORT=%(other)s")
            facts = {"port": self.port, "host": HOST, "other": self.port + 10}
            raise CommandError(f"{text % facts} make demo")

    def open_endpoint(self) -> Endpoint:
        """Return the completion endpoint; raise CommandError where its port is taken."""
        try:
            return Endpoint(self.endpoint_port, on_post=lambda post: self.posts.append(post.number))
        except EndpointTakenError as error:
            text = _(
                "port %(port)s on %(host)s, for the demo's completion endpoint, is in use; choose"
                " another one: ENDPOINT_PORT=%(other)s"
            )
            facts = {"port": self.endpoint_port, "host": HOST, "other": self.endpoint_port + 10}
            raise CommandError(f"{text % facts} make demo") from error

    def prepare(self) -> None:
        """Make database and administrator."""
        self.say(_("Preparing the database under %(path)s") % {"path": self.var})
        call_command("migrate", verbosity=0, interactive=False)
        self.password = kept_password(self.var / "demo-password")
        ensure_admin(self.password)

    def go_on(self, children: Children, endpoint: Endpoint) -> NoReturn:
        """Work, report, play, serve."""
        self.start(children)
        task, rate = self.work(children)
        self.report(task, rate)
        self.introduce()
        scenes = self.play(children, endpoint)
        self.conclude(scenes)
        self.serve(children)

    def start(self, children: Children) -> None:
        """Start workers and web server."""
        manage = [sys.executable, str(Path(settings.BASE_DIR) / "manage.py")]
        logs = {name: self.var / f"demo-{name}.log" for name in ("qcluster", "web")}
        children.start("qcluster", [*manage, "qcluster"], log=logs["qcluster"])
        children.start(
            "web",
            [*manage, "runserver", "--noreload", f"{HOST}:{self.port}"],
            log=logs["web"],
        )
        for path in logs.values():
            self.say(_("Log: %(path)s") % {"path": path})

        def serves() -> bool:
            children.require_alive()
            return answers(self.port)

        if not wait_for(serves, deadline_s=WEB_DEADLINE_S):
            text = _("the web server does not answer; look into %(path)s, then start again")
            raise CommandError(text % {"path": logs["web"]})

    def work(self, children: Children) -> tuple[Import, float]:
        """Import the sample and wait until all of it is posted; return postings a second, too."""
        began, before = time.monotonic(), Posting.objects.count()
        task = Import(finalize=True, on_fault=self.say_fault)
        with SAMPLE.open("rb") as file:
            task.run(file)
        text = _("%(imported)s orders imported, %(skipped)s skipped")
        known = _(" (known from an earlier start)") if task.skipped else ""
        self.say(text % {"imported": task.imported, "skipped": task.skipped} + known)
        self.watch(children)
        return task, (Posting.objects.count() - before) / (time.monotonic() - began)

    def say_fault(self, fault: Fault) -> None:
        """Print why an order of the sample is refused."""
        text = _("row %(row)s order %(number)s: %(message)s")
        facts = {"row": fault.row, "number": fault.order_number, "message": fault.message}
        self.say(text % facts)

    def watch(self, children: Children) -> None:
        """Show progress until nothing is left to do; raise StalledError, ChildDiedError."""
        patience, shown, said_at = Patience(self.say), progress(), 0.0
        while True:
            children.require_alive()
            now = progress()
            if now != shown:
                shown = now
                patience.moved()
            if self.stdout.isatty() or now.done or time.monotonic() - said_at > PLAIN_LINE_EVERY_S:
                self.show(now)
                said_at = time.monotonic()
            if now.done:
                return
            patience.check()
            time.sleep(LOOK_EVERY_S)

    def show(self, now: Progress) -> None:
        """Print a line of progress; on a terminal over the last one."""
        if self.stdout.isatty() and not self.as_json:
            self.stdout.write(f"\r\033[K{now}", ending="\n" if now.done else "")
            self.stdout.flush()
        else:
            self.say(str(now))

    def report(self, task: Import, rate: float) -> None:
        """Print what was done, and what reconcile finds."""
        now = progress()
        dead = OutboxEntry.objects.dead().count()
        children = Lot.objects.exclude(parent_order=None).count()
        postings = Posting.objects.count()
        self.say("")
        text = _("Orders: %(imported)s imported now, %(known)s known; %(finalized)s finalized")
        facts = {"imported": task.imported, "known": task.skipped, "finalized": now.finalized}
        self.say(text % facts)
        self.say(_("Child lots: %(count)s") % {"count": children})
        text = _(
            "Ledger: %(posted)s transactions, %(postings)s postings"
            " (%(rate).0f postings/s from the import to the last one)"
        )
        self.say(text % {"posted": now.posted, "postings": postings, "rate": rate})
        self.say(_("Dead entries (DLQ): %(count)s") % {"count": dead})
        found = verdict.reach()
        self.say_verdict(found)
        self.document = {
            **asdict(now), "dead": dead, "url": self.url(), "agrees": found.report.ok,
        }  # fmt: skip

    def say_verdict(self, found: verdict.Verdict) -> None:
        """Print what reconcile finds; what the stories do not account for is wrong."""
        self.say(_("Reconcile:"))
        self.say_lines(found.lines())
        if not found.as_told:
            self.status = WRONG

    def url(self, path: str = "") -> str:
        """Return an address of the site."""
        return f"http://{HOST}:{self.port}/{path}"

    def introduce(self) -> None:
        """Say where to watch, and what the processes run with."""
        self.say("")
        self.say(
            _("Three stories break something on purpose. Watch them: %(url)s") % {"url": self.url()}
        )
        self.say_login()
        self.say("")
        self.say(_("So that nobody waits, these settings are sized for the demo:"))
        self.say_lines(f"  {line}" for line in environment.described(self.environ))
        self.say(_("Clock times are in the time zone %(zone)s.") % {"zone": settings.TIME_ZONE})

    def say_login(self) -> None:
        """Say how to log in."""
        text = _("Log in as: %(user)s, password %(password)s (kept in %(path)s)")
        path = self.var / "demo-password"
        self.say(text % {"user": USER, "password": self.password, "path": path})

    def play(self, children: Children, endpoint: Endpoint) -> dict[str, Any]:
        """Play the stories that were not played yet; return what each came to."""
        stage = Stage(
            children=children,
            say=self.say,
            endpoint=environment.endpoint_origin(self.endpoint_port),
            switch=lambda on: endpoint.come_up() if on else endpoint.go_down(),
            logs=self.var,
            posts=self.posts,
        )
        return {story.key: self.play_one(story, stage, nth) for nth, story in enumerate(STORIES, 1)}

    def play_one(self, story: Story, stage: Stage, nth: int) -> dict[str, Any]:
        """Play a story, unless it was played before; return what it came to."""
        self.say("")
        heading = _("Story %(nth)s of %(all)s: %(title)s")
        self.say(heading % {"nth": nth, "all": len(STORIES), "title": story.title})
        before = story.look(stage.endpoint)
        if before.state is State.PLAYED and not self.again:
            text = _("Played before: %(orders)s. `make demo ARGS=--again` plays it again.")
            self.say(text % {"orders": ", ".join(outcome(before)["orders"])})
            return outcome(before)
        stage.told.clear()
        stage.posts.clear()
        self.played += 1
        after = story.play(stage, take_after(before))
        if after.state is not State.PLAYED:
            self.say(_("This did not go as it is told: somebody took a hand in it."))
            self.status = WRONG
        return outcome(after)

    def conclude(self, stories: dict[str, Any]) -> None:
        """Say how it stands now, how to log in, and what to try."""
        now = progress()
        found = verdict.reach()
        if self.played:  # else it was said a moment ago
            self.say(f"\n{now}")
            self.say_verdict(found)
        self.say("")
        self.say(_("Look at: %(url)s") % {"url": self.url()})
        self.say(_("It shows where to look and what to try; the admin is at %(url)s")
                 % {"url": self.url("admin/")})  # fmt: skip
        self.say_login()
        self.say(_("Ctrl-C stops it."))
        after = {**asdict(now), "unexplained_findings": [it.target for it in found.unexplained]}
        self.document |= {"stories": stories, "after_stories": after}
        if self.as_json:
            super().print_document()
            self.stdout.flush()

    def serve(self, children: Children) -> NoReturn:
        """Serve until stopped; a board arrives now and then, unless a program is looking on."""
        deliveries = None if self.as_json else Deliveries(self.tell)
        while True:
            children.require_alive()
            if deliveries:
                deliveries.turn()
            time.sleep(LOOK_EVERY_S)

    def farewell(self) -> None:
        """Say how to go on and how to forget."""
        self.say(_("Stopped. `make demo` carries on where this one is; `make demo-clean` forgets."))

    def say(self, text: str) -> None:
        """Print a line for people at once."""
        super().say(text)
        self.stdout.flush()

    def tell(self, text: str) -> None:
        """Print what happens now, with the time of day."""
        self.say(f"{clock(db_now())}  {text}")

    def say_lines(self, lines: Iterable[str]) -> None:
        """Print lines for people."""
        for line in lines:
            self.say(line)

    def print_document(self) -> None:
        """Print nothing more: the document came with the summary."""
