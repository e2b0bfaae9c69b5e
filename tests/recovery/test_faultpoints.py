"""Fault points: what each action does, at which visit, and that they are off by default."""

import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from django.conf import settings as configured
from django.core.exceptions import ImproperlyConfigured

from recovery import faultpoints
from recovery.faultpoints import Fault, InjectedFaultError, faultpoint, parse
from settings.jobs import RECOVERY_FAULTPOINTS_PATTERN
from tests.processes import Started
from tests.waiting import eventually

pytestmark = pytest.mark.once

PROGRAM = """
import django
django.setup()
from recovery.faultpoints import faultpoint
for visit in (1, 2, 3):
    faultpoint("here")
    print(visit, flush=True)
"""


@pytest.fixture
def visits() -> Iterator[Callable[[str], Started]]:
    """Return what starts a process that visits fault point ``here`` three times."""
    started = []

    def start(spec: str) -> Started:
        env = {"DJANGO_SETTINGS_MODULE": "settings.base", "DEBUG": "true"}
        command = [sys.executable, "-c", PROGRAM]
        started.append(Started(command, env | {"RECOVERY_FAULTPOINTS": spec}))
        return started[-1]

    yield start
    for process in started:
        process.kill_all()


def test_off_by_default():
    assert configured.RECOVERY_FAULTPOINTS == ""
    faultpoint("lease.acquired")


@pytest.mark.parametrize(("spec", "seen"), [("here=crash", []), ("here=crash@3", ["1", "2"])])
def test_crash_ends_the_process_as_kill_9_does(visits, spec, seen):
    done = visits(spec).finish()
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == seen


def test_stop_freezes_the_process_until_it_is_told_to_go_on(visits):
    process = visits("here=stop@2")
    eventually(process.is_stopped)
    process.signal(signal.SIGCONT)
    done = process.finish()
    assert (done.returncode, done.stdout.split()) == (0, ["1", "2", "3"])


def test_raise_is_an_error_of_its_own(settings):
    settings.RECOVERY_FAULTPOINTS = "here=raise"
    with pytest.raises(InjectedFaultError, match="injected at here"):
        faultpoint("here")


def test_sleep_takes_its_seconds(settings):
    settings.RECOVERY_FAULTPOINTS = "here=sleep:0.2"
    begun = time.monotonic()
    faultpoint("here")
    assert time.monotonic() - begun >= 0.2


def test_other_points_are_left_alone(settings):
    settings.RECOVERY_FAULTPOINTS = "here=raise"
    for name in ("her", "heree", "there", "", "here.too"):
        faultpoint(name)


def test_only_the_visit_asked_for_is_hit(settings):
    settings.RECOVERY_FAULTPOINTS = "here=raise@2"
    faultpoint("here")
    with pytest.raises(InjectedFaultError):
        faultpoint("here")
    faultpoint("here")


def test_visits_are_counted_anew_after_forgetting(settings):
    settings.RECOVERY_FAULTPOINTS = "here=raise@2"
    faultpoint("here")
    faultpoints.forget()
    faultpoint("here")
    with pytest.raises(InjectedFaultError):
        faultpoint("here")


def test_each_point_counts_its_own_visits(settings):
    settings.RECOVERY_FAULTPOINTS = "here=raise@2,there=raise@1"
    faultpoint("here")
    with pytest.raises(InjectedFaultError, match="there"):
        faultpoint("there")
    with pytest.raises(InjectedFaultError, match="here"):
        faultpoint("here")


@pytest.mark.parametrize("key", ["lot:B1:received", "lot:B1", "lot:B12:received"])
def test_entries_are_hit_by_the_beginning_of_their_key(settings, key):
    settings.RECOVERY_FAULTPOINTS = "outbox.entry:lot:B1=raise"
    with pytest.raises(InjectedFaultError):
        faultpoint(f"outbox.entry:{key}")
    faultpoint("outbox.entry:lot:B2:received")


def test_notation_is_read():
    assert parse("a.b=crash, c=sleep:1.5@3,outbox.entry:x=y=stop,") == [
        Fault("a.b", "crash"),
        Fault("c", "sleep", 1.5, 3),
        Fault("outbox.entry:x=y", "stop"),
    ]


@pytest.mark.parametrize(
    "spec",
    ["x", "=crash", "x=explode", "x=sleep", "x=sleep:", "x=sleep:a", "x=crash:1", "x=stop@b"],
)
def test_wrong_notation_is_refused_in_words_and_at_the_start(visits, spec):
    with pytest.raises(ImproperlyConfigured, match="RECOVERY_FAULTPOINTS"):
        parse(spec)
    done = visits(spec).finish()
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert RECOVERY_FAULTPOINTS_PATTERN not in done.stderr
