"""Spans: how traces go on, what a process without tracing loads, and where spans end up."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.conf import settings as django_settings
from django.test import RequestFactory
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from recovery import runner, tracing
from recovery.models import JobRun
from tests.logs import kept
from tests.recovery.engine import register
from tests.tracing import PARENT, REMOTE, TRACE, id_of, links_of, parent_of, trace_of, traced
from tests.waiting import eventually


def test_first_attempt_continues_the_trace_and_later_ones_are_linked_to_it():
    with traced() as seen:
        with tracing.attempt("work", traceparent=REMOTE, first=True, attempt=1):
            pass
        with tracing.attempt("work", traceparent=REMOTE, first=False, attempt=2):
            pass
    first, second = seen.all("work")
    assert (trace_of(first), parent_of(first), links_of(first)) == (TRACE, PARENT, [])
    assert trace_of(second) != TRACE
    assert (parent_of(second), links_of(second)) == ("", [(TRACE, PARENT)])


@pytest.mark.parametrize("damaged", ["", "00-ab-cd-01", "\n", "00-" + "0" * 32 + "-" + "0" * 16])
def test_traceparent_that_names_nothing_is_left_out(damaged):
    with traced() as seen:
        with tracing.span("outer"), tracing.attempt("work", traceparent=damaged, first=True):
            pass
        with tracing.attempt("again", traceparent=damaged, first=False):
            pass
    assert parent_of(seen.one("work")) == id_of(seen.one("outer"))
    assert (parent_of(seen.one("again")), links_of(seen.one("again"))) == ("", [])


def test_current_is_what_others_continue_it_by():
    with traced() as seen:
        assert tracing.current() == ""
        with tracing.span("outer"):
            known = tracing.current()
        assert tracing.current() == ""
    span = seen.one("outer")
    assert known.split("-")[:3] == ["00", trace_of(span), id_of(span)]
    assert len(known) == 55


def test_error_is_told_by_its_class_alone():
    with traced() as seen, pytest.raises(ValueError, match="secret"), tracing.span("work"):
        raise ValueError("secret quantity")
    span = seen.one("work")
    assert (span.status.description, span.attributes["code"]) == ("ValueError", "ValueError")
    assert "quantity" not in span.to_json()


def test_attributes_are_bounded():
    with traced() as seen, tracing.span("work", order="x" * 10_000, nothing=None, empty=""):
        pass
    assert seen.one("work").attributes == {"order": "x" * 200}


def test_records_within_a_span_name_it():
    with kept() as lines, traced() as seen, tracing.span("work"):
        logging.getLogger("recovery.test").info("inside")
    span, (record,) = seen.one("work"), lines
    assert (record["trace_id"], record["span_id"]) == (trace_of(span), id_of(span))


def test_request_continues_the_trace_of_whoever_asks():
    from recovery.tracing.web import TracingMiddleware

    def answer(request):
        from django.http import HttpResponse

        response = HttpResponse(tracing.current(), status=503)
        request.resolver_match = type("Match", (), {"route": "admin/<path>"})()
        return response

    with traced() as seen:
        headers = {"traceparent": REMOTE}
        request = RequestFactory().get("/admin/SO-1/?q=secret", headers=headers)
        told = TracingMiddleware(answer)(request).content.decode()
    span = seen.one("GET admin/<path>")
    assert (trace_of(span), parent_of(span)) == (TRACE, PARENT)
    assert told.split("-")[1:3] == [trace_of(span), id_of(span)]
    assert span.attributes["http.response.status_code"] == 503
    assert not span.status.is_ok
    assert "secret" not in span.to_json()


@pytest.mark.django_db(transaction=True)
def test_run_is_a_span_with_its_counts_and_an_idle_one_is_none(no_redis, monkeypatch):
    batches = iter([runner.registry.Batch({"posted": 3}), runner.registry.Batch()])
    name = register(monkeypatch, lambda _run: next(batches)).name
    with traced() as seen:
        runner.run_job(name)
        runner.run_job(name)
    span = seen.one(f"job {name}")
    assert span.attributes["count.posted"] == 3
    assert span.attributes["job"] == name
    assert parent_of(span) == ""


@pytest.mark.django_db(transaction=True)
def test_run_that_fails_says_so(no_redis, monkeypatch):
    def fail(_run):
        raise KeyError("unit")

    name = register(monkeypatch, fail).name
    with traced() as seen:
        runner.run_job(name)
    assert seen.one(f"job {name}").status.description == "KeyError"


# Whole processes


def python(code, **environment):
    base = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=django_settings.BASE_DIR,
        env=base | {"DJANGO_SETTINGS_MODULE": "settings.base", "DEBUG": "true"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


SET_UP = "import django; django.setup()\n"
ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def test_nothing_is_imported_where_tracing_is_off():
    code = f"""{SET_UP}
import sys
from recovery import tracing
from django.test import Client
with tracing.span("x") as span, tracing.attempt("y", traceparent="", first=True):
    span.note(a=1)
tracing.record("z", traceparent="", first=True, since_ns=0)
assert tracing.current() == "" == tracing.begun("b", traceparent="").traceparent
Client().get("/healthz")
import splits.jobs, ledger.jobs
# Not all of OpenTelemetry: redis-py looks for its meters by itself.
ours = ("recovery.tracing.spans", "opentelemetry.sdk.trace", "opentelemetry.exporter")
print([name for name in sys.modules if name.startswith(ours)])
"""
    done = python(code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_all_works_where_the_extra_is_absent():
    done = python(f"{ABSENT}{SET_UP}import splits.jobs, ledger.jobs\nprint('well')")
    assert (done.returncode, done.stdout.strip()) == (0, "well"), done.stderr


def test_switched_on_without_the_extra_is_refused_in_one_line():
    done = python(f"{ABSENT}{SET_UP}", TRACING_ENABLED="true")
    assert done.returncode == 2
    assert "TRACING_ENABLED='true' is not usable" in done.stderr
    assert "pip install split-recovery[tracing]" in done.stderr


@contextmanager
def collector():
    """Run a collector; yield its address and the names of the spans that it was sent."""
    names = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent = ExportTraceServiceRequest.FromString(body)
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    names.extend(it.name for it in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_args):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", names
    finally:
        server.shutdown()
        server.server_close()


FORKS = """
import multiprocessing
from recovery import tracing
def work(name):
    with tracing.span(name):
        pass
work("parent")
children = [multiprocessing.get_context("fork").Process(target=work, args=(f"child {n}",))
            for n in range(3)]
for child in children:
    child.start()
for child in children:
    child.join()
print([child.exitcode for child in children])
"""


PATIENT = """
from recovery.tracing import spans
spans.LEAVE_S = 60
"""


def test_parent_and_what_it_forks_send_their_own_spans():
    with collector() as (url, names):
        environment = {"TRACING_ENABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        patience = {"OTEL_EXPORTER_OTLP_TIMEOUT": "60", "PYTHONWARNINGS": "ignore"}
        done = python(f"{SET_UP}{PATIENT}{FORKS}", **environment, **patience)
        assert json.loads(done.stdout) == [0, 0, 0], done.stderr
        eventually(lambda: sorted(names) == ["child 0", "child 1", "child 2", "parent"])


def test_collector_that_is_away_keeps_nobody():
    environment = {"TRACING_ENABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = python(f"{SET_UP}{FORKS}", PYTHONWARNINGS="ignore", **environment)
    assert json.loads(done.stdout) == [0, 0, 0], done.stderr


@contextmanager
def deaf():
    """Run a collector that takes connections and never answers; yield its address and itself."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}", server


def connections_to(server):
    """Return how many connections were made to a server that has accepted none."""
    server.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


FULL = """
from recovery import tracing
for _ in range(2_000):
    with tracing.span("x"):
        pass
"""


def test_process_with_all_it_can_keep_does_not_wait_longer_for_a_deaf_collector():
    # Two thousand spans go in ten requests, each of which alone waits as long.
    with deaf() as (url, server):
        environment = {"TRACING_ENABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        haste = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "200"}
        done = python(f"{SET_UP}{FULL}", PYTHONWARNINGS="ignore", **environment, **haste)
        requests = connections_to(server)
    assert done.returncode == 0, done.stderr
    assert 1 <= requests <= 3


@pytest.mark.django_db(transaction=True)
def test_deaf_collector_keeps_no_run_and_no_cluster_from_its_end(manage, no_redis):
    with deaf() as (url, _server):
        environment = {"TRACING_ENABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        cluster = manage.start("qcluster", env=environment | {"JOB_METRICS_PERIOD_SEC": "1"})
        ran = JobRun.objects.filter(job_id="metricsCollect", status="ok")
        eventually(lambda: ran.count() >= 3)
        cluster.signal(signal.SIGTERM)
        ended = cluster.finish()
    assert ended.returncode == 0, ended.stderr
    assert "cluster_killed" not in ended.stderr


@pytest.mark.django_db(transaction=True)
def test_recycled_worker_sends_what_it_keeps(manage, no_redis):
    with collector() as (url, names):
        environment = {"TRACING_ENABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        patience = {"JOB_METRICS_PERIOD_SEC": "1", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        recycling = {"DJANGO_SETTINGS_MODULE": "tests.recovery.recycling"}
        manage.start("qcluster", env=environment | patience | recycling)
        eventually(lambda: "job metricsCollect" in names)


@pytest.mark.django_db(transaction=True)
def test_workers_of_a_cluster_send_theirs(manage, no_redis):
    with collector() as (url, names):
        environment = {"TRACING_ENABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        haste = {"JOB_METRICS_PERIOD_SEC": "1", "OTEL_BSP_SCHEDULE_DELAY": "200"}
        manage.start("qcluster", env=environment | haste)
        eventually(lambda: "job metricsCollect" in names)
