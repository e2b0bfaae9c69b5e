"""Children that die with their parent; tests/faults/ kills real clusters."""

import os
import signal
import sys
from select import select

import pytest

from recovery.orphans import die_with_parent
from tests.recovery.engine import fork, forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")


def test_child_is_killed_when_its_parent_dies():
    reading, writing = os.pipe()
    asked, asking = os.pipe()

    def parent():
        ask_kernel = die_with_parent()
        fork(lambda: child(ask_kernel))
        os.read(asked, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    def child(ask_kernel):
        ask_kernel()
        signal.alarm(120)
        os.write(asking, b"1")
        signal.pause()

    assert forked(parent) == -signal.SIGKILL
    os.close(writing)
    gone, _, _ = select([reading], [], [], 60)  # nobody is left who could write
    assert gone


def test_child_whose_parent_died_before_it_asked_ends_itself():
    ask_kernel = die_with_parent()
    assert forked(lambda: forked(ask_kernel)) == 1


def test_child_of_a_living_parent_goes_on():
    assert forked(die_with_parent()) == 0
