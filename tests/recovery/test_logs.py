"""Every record of a run names job, run and attempt; those of errors code and stack."""

import logging
import threading

import pytest
from django.db import OperationalError, connection
from django_q.exceptions import TimeoutException

from recovery import link, runner, wakeups
from recovery.checks.configuration import check_stack
from recovery.commands import OperatorCommand
from recovery.errors import with_retries
from recovery.models import JobRun, RunStatus
from recovery.registry import Batch
from recovery.runner import run_job
from tests.logs import kept, named
from tests.recovery.engine import NAME, client, register

pytestmark = pytest.mark.django_db(transaction=True)

logger = logging.getLogger("anybody")


def test_whatever_is_logged_within_a_run_names_job_run_and_attempt(rung, monkeypatch):
    def work(_run):
        logger.info("from_elsewhere")
        logger.error("from_elsewhere_too", extra={"attempt": 7})
        return Batch({"done": 1})

    register(monkeypatch, work)
    with kept() as lines:
        run_job(NAME)
    run_id = str(JobRun.objects.get().run_id)
    assert [it["event"] for it in lines] == ["from_elsewhere", "from_elsewhere_too", "run_finished"]
    assert {(it["job"], it["run_id"]) for it in lines} == {(NAME, run_id)}
    assert [it["attempt"] for it in lines] == [1, 7, 1]
    assert (lines[-1]["status"], lines[-1]["counts"]) == ("ok", {"done": 1})


def test_nothing_of_a_run_clings_to_what_is_logged_after_it(rung, monkeypatch):
    register(monkeypatch, lambda _run: 1 / 0)
    with kept() as lines:
        run_job(NAME)
        logger.info("afterwards")
    assert not {"job", "run_id", "attempt"} & named(lines, "afterwards").keys()


def test_failed_run_is_logged_with_code_attempt_fence_and_stack(rung, monkeypatch):
    register(monkeypatch, lambda _run: 1 / 0)
    for status in (RunStatus.OK, RunStatus.DIED):
        JobRun.objects.create(job_id=NAME, fence=0, host="h", pid=1, status=status)
    with kept() as lines:
        run_job(NAME)
    failed = named(lines, "run_failed")
    assert (failed["level"], failed["code"]) == ("error", "ZeroDivisionError")
    assert (failed["attempt"], failed["fence"]) == (2, 1)
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")
    assert named(lines, "run_finished")["status"] == "failed"


def test_code_of_a_database_error_is_text_as_all_codes_are(no_redis, monkeypatch):
    def work(_run):
        raise OperationalError(1146, "Table 'x' doesn't exist")

    register(monkeypatch, work)
    with kept() as lines:
        run_job(NAME)
    assert named(lines, "run_failed")["code"] == "1146"


def test_run_that_the_queue_ends_is_logged_with_its_stack(no_redis, monkeypatch):
    def work(_run):
        raise TimeoutException("Task exceeded maximum timeout value (90 seconds)")

    register(monkeypatch, work)
    with kept() as lines, pytest.raises(SystemExit):
        run_job(NAME)
    failed = named(lines, "run_failed")
    assert (failed["job"], failed["code"]) == (NAME, "TimeoutException")
    assert "Task exceeded maximum timeout value" in failed["exception"]


def test_run_without_a_lock_is_logged_with_its_job(no_redis, monkeypatch):
    def refuse(_name):
        raise OperationalError(2002, "gone")

    register(monkeypatch)
    monkeypatch.setattr(runner.leases, "taking", refuse)
    with kept() as lines:
        run_job(NAME)
    skipped = named(lines, "run_skipped_no_lock")
    assert (skipped["job"], skipped["code"]) == (NAME, "2002")


def test_wake_up_of_another_job_does_not_take_this_ones_name(no_redis, monkeypatch):
    def work(_run):
        monkeypatch.setattr(wakeups, "_set_flag", lambda _name: 1 / 0)
        monkeypatch.setattr(wakeups, "DatabaseError", ZeroDivisionError)
        wakeups.wake("processLedgerOutbox")
        return Batch()

    register(monkeypatch, work)
    with kept() as lines:
        run_job(NAME)
    failed = named(lines, "wake_up_not_sent")
    assert (failed["job"], failed["wakes"]) == (NAME, "processLedgerOutbox")


def test_retry_within_a_run_names_it(no_redis, monkeypatch):
    tries = iter([OperationalError(1213, "Deadlock found"), None])

    def once() -> None:
        error = next(tries)
        if error:
            raise error

    def work(_run):
        with_retries(once)
        return Batch()

    register(monkeypatch, work)
    with kept() as lines:
        run_job(NAME)
    retried = named(lines, "database_retry")
    assert (retried["job"], retried["code"]) == (NAME, "1213")


def test_redis_that_refuses_a_command_within_a_run_is_logged_with_stack(redis_up, monkeypatch):
    def work(_run):
        client().set("a-list", "x")
        with pytest.raises(link.RedisDownError):
            link.call(lambda server: server.lpush("a-list", "y"))
        return Batch()

    register(monkeypatch, work)
    with kept() as lines:
        run_job(NAME)
    refused = named(lines, "redis_refused")
    assert (refused["job"], refused["attempt"]) == (NAME, 1)
    assert refused["code"] == "WRONGTYPE"
    assert "ResponseError" in refused["exception"]


def test_two_runs_at_once_do_not_mix_their_names(no_redis, monkeypatch):
    begun = threading.Barrier(2)

    def work(run):
        begun.wait(100)
        logger.info("meanwhile", extra={"mine": str(run.run_id)})
        return Batch()

    for name in ("firstJob", "secondJob"):
        register(monkeypatch, work, name=name)
    threads = [
        threading.Thread(target=run_and_close, args=(name,)) for name in ("firstJob", "secondJob")
    ]
    with kept() as lines:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(150)
    said = [it for it in lines if it["event"] == "meanwhile"]
    assert sorted(it["job"] for it in said) == ["firstJob", "secondJob"]
    assert all(it["run_id"] == it["mine"] for it in said)


def run_and_close(name: str) -> None:
    """Run a job in this thread, whose connection it closes."""
    try:
        run_job(name)
    finally:
        connection.close()


@pytest.mark.parametrize("as_json", [True, False])
def test_findings_of_checks_are_records_where_logs_are_json(settings, capsys, as_json):
    settings.LOGGING = settings.LOGGING | {"as_json": as_json}
    settings.DATABASE_URL, settings.REDIS_URL = "", "redis://127.0.0.1/0"
    (warning,) = check_stack(None)
    with kept() as lines:
        OperatorCommand().check()
    found = [(it["level"], it["check"], it["text"]) for it in lines]
    assert found == ([("warning", "recovery.W007", warning.msg)] if as_json else [])
    assert ("recovery.W007" in capsys.readouterr().err) is not as_json
