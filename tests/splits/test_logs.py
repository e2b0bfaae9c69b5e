"""Records about an order name it with its epoch, and errors the code and the attempt."""

import logging

import pytest
from django.db import OperationalError

from recovery.clock import db_now
from recovery.runner import run_job
from splits import finalize as finalizing
from splits import holders, stuck
from splits.finalize import finalize
from splits.models import SplitOrder
from splits.steps import STEPS
from tests.factories import AUTHOR, SplitOrderFactory, hang
from tests.logs import kept, named
from tests.splits.endpoint import serving
from tests.splits.recovering import recover_all

pytestmark = pytest.mark.django_db(transaction=True)

logger = logging.getLogger("anybody")


def test_whatever_is_logged_within_a_finalization_names_order_epoch_and_attempt(monkeypatch):
    order = SplitOrderFactory()
    monkeypatch.setitem(STEPS, "validate", lambda _order: logger.info("from_elsewhere"))
    with kept() as lines:
        finalize(order.pk, author=AUTHOR)
        logger.info("afterwards")
    for event in ("from_elsewhere", "finalized"):
        said = named(lines, event)
        assert (said["order"], said["epoch"], said["attempt"]) == (order.number, 1, 1)
    assert "order" not in named(lines, "afterwards")


def test_failed_finalization_of_a_job_is_logged_with_run_code_attempt_and_stack(settings):
    settings.RECOVERY_FAULTPOINTS = "finalize.in_step.consume_source=raise"
    order = SplitOrderFactory()
    SplitOrder.objects.update(finalize_attempts=2, finalize_epoch=4)
    with kept() as lines:
        run_job("finalizeRetryWorker")
    failed = named(lines, "finalize_failed")
    assert (failed["job"], len(failed["run_id"])) == ("finalizeRetryWorker", 36)
    assert (failed["order"], failed["epoch"], failed["attempt"]) == (order.number, 5, 3)
    assert (failed["level"], failed["code"]) == ("error", "unexpected")
    assert "InjectedFaultError: injected at finalize.in_step.consume_source" in failed["exception"]


def test_retry_of_a_step_names_the_order(monkeypatch):
    order = SplitOrderFactory()
    errors = iter([OperationalError(1213, "Deadlock found")])
    record = finalizing.FinalizeStep.objects.create

    def create(**facts):
        for error in errors:
            raise error
        return record(**facts)

    monkeypatch.setattr(finalizing.FinalizeStep.objects, "create", create)
    with kept() as lines:
        finalize(order.pk, author=AUTHOR)
    retried = named(lines, "database_retry")
    assert (retried["order"], retried["epoch"], retried["code"]) == (order.number, 1, "1213")


def test_finalizer_that_was_reset_is_logged_with_code(monkeypatch):
    order = SplitOrderFactory()

    def reset(_order):
        SplitOrder.objects.update(finalize_epoch=9)
        raise finalizing.FencedError(order.number)

    monkeypatch.setitem(STEPS, "validate", reset)
    with kept() as lines:
        finalize(order.pk, author=AUTHOR)
    fenced = named(lines, "finalize_fenced")
    assert (fenced["order"], fenced["epoch"], fenced["code"]) == (order.number, 1, "fenced")


def test_order_left_in_progress_is_logged_with_code(monkeypatch):
    def gone(*_args, **_kwargs):
        raise OperationalError(2013, "Lost connection")

    order = SplitOrderFactory()
    monkeypatch.setitem(STEPS, "validate", gone)
    monkeypatch.setattr(finalizing, "_end", gone)
    with kept() as lines:
        finalize(order.pk, author=AUTHOR)
    left = named(lines, "finalize_left_in_progress")
    assert (left["order"], left["epoch"], left["code"]) == (order.number, 1, "infrastructure")


def test_endpoint_that_goes_down_is_logged_with_order_code_attempt_and_stack(settings):
    settings.SPLIT_COMPLETION_BREAKER_FAILURES = 1
    settings.SPLIT_COMPLETION_TIMEOUT_SEC = 60
    order = SplitOrderFactory()
    with serving() as endpoint, kept() as lines:
        endpoint.status = 503
        settings.SPLIT_COMPLETION_WEBHOOK = endpoint.url.replace("//", "//user:hush-hush@")
        finalize(order.pk, author=AUTHOR)
    down = named(lines, "completion_endpoint_down")
    assert (down["level"], down["code"]) == ("error", "endpoint_failed")
    assert (down["order"], down["epoch"], down["attempt"]) == (order.number, 1, 1)
    assert down["exception"].endswith("HTTP 503")
    assert "hush-hush" not in str(lines)


def wanted() -> stuck.Request:
    return stuck.Request(author=AUTHOR, threshold_s=300)


def test_recovered_order_is_logged_with_the_epoch_it_was_taken_from():
    order = hang(SplitOrderFactory())
    with kept() as lines:
        list(recover_all(stuck.find(wanted()), wanted()))
    said = named(lines, "split_order_recovered")
    assert (said["order"], said["epoch"], said["attempt"]) == (order.number, 1, 1)
    assert said["result"] == "recovered"


def test_quarantined_order_is_an_error_with_code_and_attempt():
    order = hang(SplitOrderFactory())
    SplitOrder.objects.update(recovered_at=[db_now().isoformat()] * 3)
    with kept() as lines:
        list(recover_all(stuck.find(wanted()), wanted()))
    alarm = named(lines, "split_order_quarantined")
    assert (alarm["level"], alarm["code"]) == ("error", "quarantined")
    assert (alarm["order"], alarm["epoch"], alarm["attempt"]) == (order.number, 1, 1)


@pytest.mark.mariadb
def test_thread_that_looks_for_a_holder_names_the_order(monkeypatch):
    def fail(_self):
        raise OperationalError(1317, "Query execution was interrupted")

    order = hang(SplitOrderFactory())
    monkeypatch.setattr(holders._Waiter, "_wait_in_own_connection", fail)
    (found,) = stuck.find(wanted())
    with kept() as lines:
        stuck.name_holder(found, wanted())
    failed = named(lines, "holder_probe_failed")
    assert (failed["order"], failed["epoch"]) == (order.number, 1)
