"""What the demo is made of: its endpoint, its children and their environment."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections import deque

import pytest
from django.conf import settings

from splits.demo import environment
from splits.demo.endpoint import Endpoint, EndpointTakenError
from splits.leash import KILLED
from splits.processes import ChildDiedError, Children
from tests.splits import demos
from tests.splits.processes import wait_until

FAKE_LEASH = "GRACE_S = 20.0"


@pytest.fixture
def port():
    return demos.free_ports()[0]


@pytest.fixture
def children():
    with Children(cwd=settings.BASE_DIR, environ=os.environ) as found:
        yield found


def tell(port, number="A-1"):
    body = json.dumps({"order_number": number}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/split-completed", data=body)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.status


def python(code):
    return [sys.executable, "-c", code]


def test_endpoint_answers_refuses_and_answers_again(port):
    posts = deque()
    with Endpoint(port, on_post=posts.append) as endpoint:
        assert tell(port, "A-1") == 200
        endpoint.go_down()
        with pytest.raises(urllib.error.URLError, match="Connection refused"):
            tell(port, "A-2")
        endpoint.come_up()
        assert tell(port, "A-3") == 200
    assert [post.number for post in posts] == ["A-1", "A-3"]
    with pytest.raises(urllib.error.URLError, match="Connection refused"):
        tell(port)


def test_endpoint_takes_a_free_port_and_hands_over_what_it_was_told():
    posts = []
    with Endpoint(0, on_post=posts.append) as endpoint:
        assert endpoint.port > 0
        assert tell(endpoint.port, "A-1") == 200
    (post,) = posts
    assert (post.number, post.key, json.loads(post.body)) == ("A-1", "", {"order_number": "A-1"})


def test_endpoint_keeps_its_port_while_it_is_down(port):
    with Endpoint(port, on_post=print) as endpoint:
        with pytest.raises(EndpointTakenError):
            Endpoint(port, on_post=print)
        endpoint.go_down()
        endpoint.come_up()


def test_sizes_of_the_demo_raise_no_system_check(tmp_path):
    sized = environment.environ(8001)
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--fail-level", "WARNING"],
        cwd=settings.BASE_DIR,
        env=demos.environment(tmp_path / "var") | {key: sized[key] for key in environment.SIZED},
        capture_output=True,
        text=True,
        timeout=demos.DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_child_on_its_way_returns_its_status_and_gets_its_own_environment(children, tmp_path):
    log = tmp_path / "log"
    code = "import os; print(os.environ['EXTRA']); exit(3)"
    assert children.run("brief", python(code), log=log, environ={"EXTRA": "word"}) == 3
    assert log.read_text() == "word\n"
    children.require_alive()  # it was not one of those that are to stay


def test_child_that_is_killed_says_by_which_signal(children, tmp_path):
    code = "import os; os.kill(os.getpid(), 9)"
    status = children.run("brief", python(code), log=tmp_path / "log", environ={})
    assert status == KILLED + 9


def test_death_of_another_child_is_noticed_meanwhile(children, tmp_path):
    children.start("first", python("exit(4)"), log=tmp_path / "first")
    with pytest.raises(ChildDiedError, match="first ended by itself with status 4"):
        children.run(
            "long", python("import time; time.sleep(600)"), log=tmp_path / "log", environ={}
        )


def test_child_that_ends_is_noticed_with_its_last_words(children, tmp_path):
    children.start("brief", python("print('bye'); exit(3)"), log=tmp_path / "log")

    def noticed():
        try:
            children.require_alive()
        except ChildDiedError as error:
            return str(error)
        return ""

    message = wait_until(noticed)
    assert "brief ended by itself with status 3" in message
    assert message.endswith("bye")


def test_child_that_ignores_the_request_to_end_is_killed(tmp_path):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    log = tmp_path / "log"
    environ = {**os.environ, "VAR_DIR": str(tmp_path)}
    source = (settings.BASE_DIR / "splits" / "leash.py").read_text()
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "__init__.py").touch()
    assert FAKE_LEASH in source
    (tmp_path / "splits" / "leash.py").write_text(source.replace(FAKE_LEASH, "GRACE_S = 0.5"))
    with Children(cwd=tmp_path, environ=environ) as impatient:
        impatient.start("deaf", python(f"{code}; time.sleep(600)"), log=log)
        wait_until(lambda: "up" in log.read_text())
        impatient.require_alive()
    probe = demos.Demo.__new__(demos.Demo)
    probe.var = tmp_path
    assert probe.descendants() == []
