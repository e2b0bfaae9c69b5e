"""``manage.py`` itself: readers that leave, Ctrl-C."""

import os
import signal
import subprocess
import sys

import pytest
from django.conf import settings

from tests.processes import environment
from tests.waiting import eventually

UNREAD = 141


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [("jobs",), ("jobs", "--json"), ("audit", "guard", "--sql")])
def test_reader_that_leaves_is_no_failure(transactional_db, command, unbuffered):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "manage.py", *command],
        cwd=settings.BASE_DIR,
        env=environment() | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (UNREAD, "")


def test_ctrl_c_is_one_word_and_ends_as_shells_expect(manage):
    started = manage.start(
        "run_job", "metricsCollect", env={"RECOVERY_FAULTPOINTS": "lease.acquired=stop"}
    )
    eventually(started.is_stopped)
    started.signal(signal.SIGINT)
    started.signal(signal.SIGCONT)
    done = started.finish()
    assert done.returncode == -signal.SIGINT
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "uncaught_exception" not in done.stderr
