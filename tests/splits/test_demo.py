"""The demo: real processes, from an empty directory to the summary, killed and started again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from django.conf import settings

from splits.processes import ChildDiedError, Children
from tests.splits.processes import wait_until

DEADLINE_S = 120

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Demo:
    """A running demo in a directory of its own."""

    def __init__(self, var, port, *options, **environ):
        self.var, self.port = var, port
        self.log = (var.parent / "demo.out").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "demo", *options],
            cwd=settings.BASE_DIR,
            env={
                **{k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")},
                "DJANGO_SETTINGS_MODULE": "settings.base",
                "DEBUG": "true",
                "VAR_DIR": str(var),
                "PORT": str(port),
                "LOG_LEVEL": "WARNING",
                **environ,
            },
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def output(self):
        return (self.var.parent / "demo.out").read_text()

    def says(self, text):
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
            if mine in _content(path).split(b"\0")
            and b"Z" not in _content(path.with_name("stat")).rpartition(b")")[2][:3]
        ]

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


def _content(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def start(tmp_path, port):
    """Start the demo; whatever is left of it is killed at the end."""
    demos = []

    def start(*options, **environ):
        demos.append(Demo(tmp_path / "var", port, *options, **environ))
        return demos[-1]

    yield start
    for demo in demos:
        for pid in demo.descendants():
            os.kill(pid, signal.SIGKILL)
        demo.process.wait()
        demo.log.close()


def test_demo_finalizes_and_posts_everything_and_serves_until_it_is_stopped(start, port):
    demo = start()
    output = demo.says("Ctrl-C stops it.")
    assert "120 orders imported, 0 skipped" in output
    assert "120 imported now, 0 known; 120 finalized" in output
    assert "Child lots: 597" in output
    assert re.search(r"Ledger: 240 transactions, 957 postings \(\d+ postings/s", output)
    assert "Dead entries (DLQ): 0" in output
    assert "in flight: 0 entries" in output
    assert "everything agrees" in output
    password = (demo.var / "demo-password").read_text()
    assert f"Log in as: demo, password {password}" in output
    assert (demo.var / "demo-password").stat().st_mode & 0o077 == 0
    url = f"http://127.0.0.1:{port}/admin/"
    assert f"Look at: {url}" in output
    with urllib.request.urlopen(url, timeout=20) as page:
        assert page.status == 200
    assert demo.end() == 0
    wait_until(lambda: not demo.descendants())
    assert "make demo-clean" in demo.output()
    assert "Traceback" not in demo.output()


def test_demo_that_was_killed_leaves_nothing_running_and_carries_on(start):
    first = start()
    first.says("orders finalized")
    assert len(first.descendants()) > 4
    password = (first.var / "demo-password").read_text()
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    second = start()  # at once: it waits for the port
    output = second.says("Ctrl-C stops it.")
    assert "0 orders imported, 120 skipped (known from an earlier start)" in output
    assert "120 finalized" in output
    assert "everything agrees" in output
    assert f"password {password}" in output
    assert second.end() == 0
    wait_until(lambda: not second.descendants())


def test_json_is_one_document(start):
    demo = start("--json")
    demo.says("}")
    document = json.loads(demo.output())
    assert (document["finalized"], document["pending"], document["agrees"]) == (120, 0, True)
    assert demo.end() == 0


def test_death_of_a_child_ends_the_demo_and_says_so(start):
    demo = start()
    demo.says("orders finalized")
    (web,) = [
        pid
        for pid in demo.descendants()
        if b"runserver" in _content(Path(f"/proc/{pid}/cmdline"))
        and b"splits.leash" not in _content(Path(f"/proc/{pid}/cmdline"))
    ]
    os.kill(web, signal.SIGKILL)
    assert demo.process.wait(DEADLINE_S) == 1
    assert "web ended by itself with status" in demo.output()
    assert "demo-web.log ends with:" in demo.output()
    wait_until(lambda: not demo.descendants())


def test_port_in_use_is_said(start, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        demo = start()
        assert demo.process.wait(DEADLINE_S) == 1
    assert f"port {port} on 127.0.0.1 is in use" in demo.output()


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"PORT": "http"}, "PORT='http' is not usable"),
        ({"PORT": "70000"}, "1 to 65535"),
        ({"REDIS_URL": "redis://localhost", "SECRET_KEY": "x"}, "unset DATABASE_URL and REDIS_URL"),
    ],
)
def test_wrong_usage_exits_2(start, environ, reason):
    demo = start(**environ)
    assert demo.process.wait(DEADLINE_S) == 2
    assert reason in demo.output()


def test_child_that_ignores_the_request_to_end_is_killed(tmp_path, monkeypatch):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    log = tmp_path / "log"
    environ = {**os.environ, "VAR_DIR": str(tmp_path)}
    source = (settings.BASE_DIR / "splits" / "leash.py").read_text()
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "__init__.py").touch()
    (tmp_path / "splits" / "leash.py").write_text(source.replace("GRACE_S = 20.0", "GRACE_S = 0.5"))
    with Children(cwd=tmp_path, environ=environ) as children:
        children.start("deaf", [sys.executable, "-c", f"{code}; time.sleep(600)"], log=log)
        wait_until(lambda: "up" in log.read_text())
        children.require_alive()
    probe = Demo.__new__(Demo)
    probe.var = tmp_path
    assert probe.descendants() == []


def test_child_that_ends_is_noticed_with_its_last_words(tmp_path):
    log = tmp_path / "log"
    with Children(cwd=settings.BASE_DIR, environ=os.environ) as children:
        children.start("brief", [sys.executable, "-c", "print('bye'); exit(3)"], log=log)

        def noticed():
            try:
                children.require_alive()
            except ChildDiedError as error:
                return str(error)
            return ""

        message = wait_until(noticed)
    assert "brief ended by itself with status 3" in message
    assert message.endswith("bye")
