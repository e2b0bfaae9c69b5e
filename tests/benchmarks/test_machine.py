import os
import subprocess
import sys

import pytest

from benchmarks import machine

pytestmark = pytest.mark.once


def test_own_processor_time_and_memory_are_read():
    assert machine.cpu_s(os.getpid()) > 0
    pss, rss = machine.memory_mib(os.getpid())
    assert 0 < pss <= rss


def test_family_begins_with_the_parent():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = machine.family(os.getpid())
    assert found[0] == os.getpid()
    assert child.pid in found[1:]
    child.communicate()


def test_process_that_is_gone_used_nothing():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert machine.cpu_s(child.pid) == 0


def test_meter_counts_what_was_used_meanwhile():
    meter = machine.Meter([os.getpid()]).start()
    while machine.cpu_s(os.getpid()) <= meter._cpu[os.getpid()] + 0.02:
        sum(range(10_000))
    meter.stop()
    assert meter.used_s[os.getpid()] > 0
    assert 0 < meter.busy <= 1
