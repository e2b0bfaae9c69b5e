"""Standard error of real processes: every line a record, errors with all that is to be known."""

import json
import signal
import sys
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from ledger.models import OutboxEntry
from ledger.outbox import JOB, Line
from recovery.broker import RungBroker
from recovery.models import JobRun
from splits.models import SplitOrder
from tests import servers
from tests.factories import SplitOrderFactory
from tests.ledger.entries import into, lines, put
from tests.processes import Started, environment
from tests.waiting import eventually
from tests.web import Web

pytestmark = pytest.mark.django_db(transaction=True)

FAULTS = "lease.acquired=raise@1,outbox.entry:broken=raise,finalize.in_step.consume_source=raise"
TOKEN = "bearer-of-the-scraper"
ERRORS = ("error", "critical")


def records(text: str) -> list[dict[str, Any]]:
    """Return the fields of each line; every line must be JSON."""
    return [json.loads(line) for line in text.splitlines()]


def about(found: list[dict[str, Any]], event: str, **facts: Any) -> dict[str, Any]:
    """Return the first record of ``event`` with these fields."""
    fitting = [it for it in found if it["event"] == event and facts.items() <= it.items()]
    assert fitting, f"no {event} with {facts} among {found}"
    return fitting[0]


def is_tried(model: Any, **facts: Any) -> bool:
    return bool(model.objects.filter(**facts).exists())


def unbalanced() -> list[Line]:
    return lines(("stock:OAK", "2"), ("external:receipts", "-1"))


@pytest.mark.timeout(300)
def test_every_line_of_a_cluster_is_a_record_and_errors_say_all(rung, cluster):
    running = cluster(RECOVERY_FAULTPOINTS=FAULTS, METRICS_TOKEN=TOKEN)
    order = SplitOrderFactory()
    broken, refused = put("broken", into("OAK", "1")), put("refused", unbalanced())
    RungBroker("recovery").enqueue("no task of ours")
    eventually(lambda: is_tried(SplitOrder, pk=order.pk, last_finalize_error_code="unexpected"))
    for entry in (broken, refused):
        eventually(lambda pk=entry.pk: is_tried(OutboxEntry, pk=pk, attempts__gt=0))
    eventually(lambda: is_tried(JobRun, status="failed"))
    old = running.started.family() - {running.parent}
    running.kill(running.sentinel)
    eventually(lambda: not old & running.started.family())
    eventually(running.is_complete)
    finished = running.stop()

    found = records(finished.stderr)
    run_ids = {str(run_id) for run_id in JobRun.objects.values_list("run_id", flat=True)}
    of_runs = [it for it in found if "run_id" in it]
    assert {it["run_id"] for it in of_runs} <= run_ids
    for record in of_runs:
        assert record["job"]
        if record["level"] in ERRORS:
            assert record["code"]
            assert record["attempt"] >= 1
            assert record["exception"].startswith("Traceback")
    failed = about(found, "run_failed", code="InjectedFaultError")
    assert "injected at lease.acquired" in failed["exception"]
    assert about(
        found, "entry_failed", job=JOB, event_key="broken", entry=broken.pk, code="unexpected"
    )
    assert about(found, "entry_refused", job=JOB, event_key="refused", code="unbalanced", attempt=1)
    facts = {"job": "finalizeRetryWorker", "order": order.number, "code": "unexpected"}
    assert about(found, "finalize_failed", epoch=1, attempt=1, **facts)
    queue = about(found, "Failed to push task to queue", logger="django-q", level="error")
    assert "BadSignature" in queue["exception"]
    parent = {about(found, event)["pid"] for event in ("cluster_started", "sentinel_died")}
    assert parent == {running.parent}
    assert len({it["pid"] for it in found}) >= 3, "parent, pusher and workers"
    for secret in (TOKEN, settings.SECRET_KEY):
        assert secret not in finished.stderr


def test_failing_run_of_a_command_is_told_on_standard_error_alone(manage):
    done = manage("run_job", JOB, "--json", env={"RECOVERY_FAULTPOINTS": "lease.acquired=raise"})
    assert (done.returncode, done.json()["status"]) == (1, "failed")
    failed = about(records(done.stderr), "run_failed", job=JOB, attempt=1)
    assert failed["run_id"] == str(JobRun.objects.get().run_id)
    assert failed["code"] == "InjectedFaultError"


def test_uncaught_exception_and_warning_of_a_command_are_records(manage):
    script = "import warnings; warnings.warn('careful'); raise ValueError('木')"
    done = manage("shell", "--verbosity", "0", "-c", script)
    found = records(done.stderr)
    assert done.returncode == 1
    assert "careful" in about(found, "python_warning")["text"]
    assert about(found, "uncaught_exception", level="critical", code="ValueError")["exception"]


def test_every_line_of_the_development_server_is_a_record(manage):
    web = Web(manage, DEBUG="true")
    assert web.ask("/nosuch?hush")[0] in (400, 404)
    eventually(lambda: "GET /healthz HTTP/1.1" in web.started.printed()[1])
    web.started.process.kill()
    web.started.process.wait()
    found = records(web.started.printed()[1])
    assert about(found, '"GET /healthz HTTP/1.1" 200 16', logger="django.server", status_code=200)


class Gunicorn:
    """A gunicorn that serves the site by deploy/gunicorn.conf.py from a database without tables."""

    def __init__(self, folder: Path, *options: str, **environ: str) -> None:
        self.port = servers.free_port()
        address = ("--bind", f"127.0.0.1:{self.port}", "--workers", "2")
        place = {"DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}", "HOME": str(folder)}
        self.started = Started(
            [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", *address, *options],
            environment() | {"REDIS_URL": "", "METRICS_TOKEN": TOKEN, **place, **environ},
        )

    def ask(self, path: str, **headers: str) -> int:
        """Return the status of the answer; 0: nobody listens."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as client:
            try:
                client.request("GET", path, headers=headers)
                return client.getresponse().status
            except (ConnectionError, HTTPException):
                return 0

    def stop(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Stop in order; return what was written on standard output and standard error."""
        self.started.signal(signal.SIGTERM)
        finished = self.started.finish()
        assert finished.returncode == 0, finished.stderr
        return records(finished.stdout), records(finished.stderr)


@pytest.mark.parametrize("options", [(), ("--access-logfile", "-")])
def test_every_line_of_gunicorn_is_a_record(tmp_path, options):
    server = Gunicorn(tmp_path, *options)
    try:
        eventually(lambda: server.ask("/healthz") == 200)
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert server.ask("/admin/login/?hush", Cookie=f"sessionid={'hush' * 8}", **bearer) == 500
        printed, found = server.stop()
    finally:
        server.started.kill_all()
    assert found[0]["event"].startswith("Starting gunicorn")
    failed = about(found, "request_failed", path="/admin/login/")
    assert (failed["level"], failed["code"]) == ("error", "OperationalError")
    assert (failed["method"], failed["path"]) == ("GET", "/admin/login/")
    assert "no such table" in failed["exception"]
    assert "hush" not in str([printed, found])
    assert TOKEN not in str([printed, found])
    if options:
        served = about(printed, "request", path="/admin/login/", status_code=500)
        assert (served["method"], served["client"]) == ("GET", "127.0.0.1")
        assert served["duration_s"] >= 0
    else:
        assert printed == []


def test_gunicorn_refuses_wrong_settings_in_one_line(tmp_path):
    server = Gunicorn(tmp_path, JOB_LOCK_TTL_SEC="soon")
    finished = server.started.finish()
    server.started.kill_all()
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith("setting JOB_LOCK_TTL_SEC='soon' is not usable")
