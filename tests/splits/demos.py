"""Run the demo in a directory of its own, and look at what it left there."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

from django.conf import settings

from tests import servers
from tests.splits.processes import wait_until

DEADLINE_S = 240
FOREIGN = ("DATABASE_URL", "REDIS_URL", "RECOVERY_FAULTPOINTS", "PROMETHEUS_MULTIPROC_DIR")


def free_ports():
    """Return two ports that were free a moment ago, and that no outgoing connection takes."""
    one, other = servers.free_port(), servers.free_port()
    return (one, other) if one != other else free_ports()


def environment(var, **environ):
    """Return the environment of a newcomer's shell, with VAR_DIR."""
    return {
        **{key: value for key, value in os.environ.items() if key not in FOREIGN},
        "DJANGO_SETTINGS_MODULE": "settings.base",
        "DEBUG": "true",
        "VAR_DIR": str(var),
        "LOG_LEVEL": "WARNING",
        **environ,
    }


class Demo:
    """A running demo."""

    def __init__(self, var, *options, ports=None, **environ):
        self.var = var
        self.port, self.endpoint_port = ports or free_ports()
        self.out = var.parent / "demo.out"
        self.log = self.out.open("wb")
        ports = {"PORT": str(self.port), "ENDPOINT_PORT": str(self.endpoint_port)}
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "demo", *options],
            cwd=settings.BASE_DIR,
            env=environment(var, **{**ports, **environ}),
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def output(self):
        return self.out.read_text()

    def says(self, text):
        """Wait until ``text`` is printed; return all that is printed by then."""

        def said():
            assert self.process.poll() is None or text in self.output(), self.output()
            return text in self.output()

        wait_until(said, deadline_s=DEADLINE_S)
        return self.output()

    def descendants(self):
        """Return the ids of processes that work in this demo's directory."""
        mine = f"VAR_DIR={self.var}".encode()
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/environ")
            if mine in content(path).split(b"\0") and lives(path.with_name("stat"))
        ]

    def child(self, command):
        """Return the id of the process that runs ``manage.py <command>``, not of its leash."""
        lines = {pid: content(Path(f"/proc/{pid}/cmdline")) for pid in self.descendants()}
        pids = [pid for pid, line in lines.items() if command in line and b"leash" not in line]
        return min(pids)

    def end(self, signum=signal.SIGTERM):
        self.process.send_signal(signum)
        return self.process.wait(DEADLINE_S)

    def clean_up(self):
        for pid in self.descendants():
            with suppress(ProcessLookupError):  # it went with its parent
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def rows(self, sql, *parameters):
        """Return what ``sql`` finds in the demo's database."""
        with closing(sqlite3.connect(self.var / "db.sqlite3", timeout=120)) as database:
            return database.execute(sql, parameters).fetchall()

    def row(self, sql, *parameters):
        """Return the one row that ``sql`` finds."""
        (found,) = self.rows(sql, *parameters)
        return found

    def manage(self, *arguments):
        """Run ``manage.py`` beside the demo, as the reader would; return status and JSON."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=settings.BASE_DIR,
            env=environment(self.var),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else {}

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path, opener=None):
        """Return status, final address and text of a page."""
        try:
            page = (opener or urllib.request.build_opener()).open(self.url(path), timeout=120)
        except urllib.error.HTTPError as error:
            page = error
        with page:
            return page.status, page.url, page.read().decode()


def lives(stat):
    """Tell whether a process is there and no zombie."""
    return content(stat).rpartition(b")")[2].split()[:1] not in ([], [b"Z"], [b"X"])


def content(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def links(html):
    """Return the addresses that a page leads to."""
    return [link.replace("&amp;", "&") for link in re.findall(r'<a href="([^"]+)"', html)]
