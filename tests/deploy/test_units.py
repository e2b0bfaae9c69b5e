"""The systemd units: sound, strict, and a stop that lets a batch end."""

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from django.conf import settings

from ledger.outbox import JOB
from recovery.cluster import GRACE_S
from recovery.models import Job, JobRun
from settings import base
from tests import servers
from tests.faults.ledger import held, is_posted, publish_one
from tests.processes import Started, environment
from tests.waiting import eventually

ROOT = Path(settings.BASE_DIR)
UNITS = ROOT / "deploy" / "systemd"
SERVICES = ("recovery-web.service", "recovery-worker.service")
PLACE = "/srv/recovery"
MOST_EXPOSED = 25
"""Of 100: systemd calls up to 50 «OK»."""


def read(name):
    """Return the settings of a unit by name; of one that is given twice, both."""
    found = {}
    for line in (UNITS / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def units(tmp_path):
    """Return the units as they would be where the project lay here."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace(PLACE, str(ROOT))
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def analyze(*arguments):
    return subprocess.run(
        [servers.binary("systemd-analyze"), *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_units_are_sound(units):
    done = analyze("verify", "--man=no", *sorted(units.iterdir()))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_misspelt_setting_would_be_told(units):
    unit = units / SERVICES[0]
    unit.write_text(unit.read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in analyze("verify", "--man=no", unit).stderr


@pytest.mark.parametrize("name", SERVICES)
def test_units_may_do_little(units, name):
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", units / name)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_stop_reaches_the_parent_alone_and_waits_longer_than_the_grace(name):
    unit = read(name)
    assert unit["KillMode"] == ["mixed"]
    assert unit["KillSignal"] == ["SIGTERM"]
    assert int(unit["TimeoutStopSec"][0]) > GRACE_S + 5
    assert unit["OOMPolicy"] == ["continue"]


def test_worker_with_wrong_settings_is_not_started_for_ever():
    assert read(SERVICES[1])["RestartPreventExitStatus"] == ["2"]
    wrong = environment() | {"JOB_LOCK_TTL_SEC": "soon"}
    done = subprocess.run(
        command_of(SERVICES[1]), cwd=ROOT, env=wrong, capture_output=True, check=False
    )
    assert done.returncode == 2


def test_web_and_worker_count_in_one_directory_that_outlives_their_restarts():
    web, worker = map(read, SERVICES)
    for key in ("RuntimeDirectory", "RuntimeDirectoryPreserve", "Environment", "WorkingDirectory"):
        assert web[key] == worker[key], key
    assert "PROMETHEUS_MULTIPROC_DIR=/run/recovery/metrics" in web["Environment"]
    assert web["RuntimeDirectoryPreserve"] == ["yes"]


def command_of(name):
    (command,) = read(name)["ExecStart"]
    return [it.replace(PLACE, str(ROOT)) for it in shlex.split(command)]


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_worker_that_is_stopped_ends_its_batch_and_leaves_with_zero(manage, tmp_path):
    command = [it.replace("9100", str(servers.free_port())) for it in command_of(SERVICES[1])]
    fault = {"RECOVERY_FAULTPOINTS": "outbox.before_commit=stop@1"}
    place = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    unticked = {"JOB_OUTBOX_PERIOD_SEC": "86400"}  # no idle run, which would stop there too
    worker = Started(command, environment() | fault | place | unticked)
    manage.started.append(worker)
    eventually(lambda: Job.objects.filter(name=JOB).exists())
    entry = publish_one()
    run = eventually(held)
    worker.signal(signal.SIGTERM)  # the main process alone: KillMode=mixed
    eventually(lambda: "cluster_stopping" in worker.printed()[1])
    os.kill(run.pid, signal.SIGCONT)
    assert worker.finish().returncode == 0
    assert not worker.family()
    assert is_posted(entry)
    assert not JobRun.objects.filter(status__in=("running", "failed")).exists()


def test_example_of_the_environment_is_understood():
    text = (ROOT / "deploy" / "env.example").read_text()
    names = re.findall(r"^(\w+)=", text, re.MULTILINE)
    assert {"DATABASE_URL", "REDIS_URL", "SECRET_KEY", "METRICS_TOKEN"} <= set(names)
    names += re.findall(r"^#(\w+)=", text, re.MULTILINE)
    assert {"AUDIT_SEAL_KEYS", "AUDIT_ARCHIVE", "AUDIT_COLD"} <= set(names)
    assert all(hasattr(settings, it) or it in base.env.known for it in names)


def test_archives_outlive_restarts_and_may_be_written():
    text = (ROOT / "deploy" / "env.example").read_text()
    (shared,) = {
        str(Path(it).parent) for it in re.findall(r"^#AUDIT_\w+=(\S+)", text, re.MULTILINE)
    }
    for unit in map(read, SERVICES):
        assert unit["StateDirectory"] == ["recovery"]
        assert "VAR_DIR=/var/lib/recovery" in unit["Environment"], "archives are in it, if not told"
        assert unit["ReadWritePaths"] == [f"-{shared}"]
