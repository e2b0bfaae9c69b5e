"""``manage.py recover_stuck``: what it takes, what it reports, how it exits."""

import io
import json
import re

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from recovery import plans
from recovery.actions import Seen, Sight
from recovery.clock import db_now
from recovery.models import AuditRecord, Plan
from recovery.runner import run_job
from splits.audit import RECOVERED
from splits.models import OrderStatus, SplitOrder
from tests.factories import SplitOrderFactory, hang

pytestmark = pytest.mark.django_db(transaction=True)


def run(*arguments: str) -> tuple[int, dict]:
    out, status = io.StringIO(), 0
    try:
        call_command("recover_stuck", *arguments, "--json", stdout=out)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    return status, json.loads(out.getvalue())


def test_stuck_orders_are_recovered():
    numbers = [hang(SplitOrderFactory()).number for _ in range(2)]
    hang(SplitOrderFactory(), age_s=1)
    status, document = run("--reason", "worker lost")
    assert status == 0
    assert document == {
        "plan": Plan.objects.get().pk,
        "found": numbers,
        "recovered": numbers,
        "held": [],
        "quarantined": [],
        "failed": [],
        "unknown": [],
        "not_reset": [],
    }
    assert set(AuditRecord.objects.values_list("reason", flat=True)) == {"worker lost"}
    assert [it.evidence["plan"] for it in AuditRecord.objects.filter(action=RECOVERED)] == [
        document["plan"]
    ] * 2


def test_only_the_numbers_given_are_recovered():
    wanted, other = hang(SplitOrderFactory()), hang(SplitOrderFactory())
    assert run(wanted.number)[1]["recovered"] == [wanted.number]
    other.refresh_from_db()
    assert other.finalize_in_progress


def test_dry_run_changes_nothing():
    order = hang(SplitOrderFactory(), age_s=400)
    status, document = run("--dry-run", "--reason", "look")
    assert (status, document["found"], document["recovered"]) == (0, [order.number], [])
    (hanging,) = document["hanging"]
    assert (hanging["number"], hanging["finalizer"]) == (order.number, "dead-host:1:token")
    assert 400 <= hanging["age_s"] < 700
    order.refresh_from_db()
    assert order.finalize_in_progress
    record = AuditRecord.objects.get()  # the one line that a rehearsal leaves
    assert (record.action, record.reason) == ("plan-previewed", "look")
    assert not Plan.objects.exists()


def test_look_that_cannot_be_noted_is_shown_all_the_same(monkeypatch):
    def locked(*_args, **_facts):
        raise OperationalError("database is locked")

    order = hang(SplitOrderFactory())
    monkeypatch.setattr(plans, "note_preview", locked)
    monkeypatch.setattr("splits.management.commands.recover_stuck.is_row_locked", lambda _: True)
    status, document = run("--dry-run")
    assert (status, document["found"], document["not_noted"]) == (
        1, [order.number], "database is locked",
    )  # fmt: skip


def test_plan_that_takes_long_is_left_to_the_workers_and_says_so(settings):
    settings.JOB_PLAN_FOREGROUND_SEC = 10
    for _ in range(3):
        hang(SplitOrderFactory())
    out = io.StringIO()
    call_command("recover_stuck", "--rate", "0.1", stdout=out)
    assert "this takes about 30 s: it is left to the workers" in out.getvalue()
    assert SplitOrder.objects.filter(finalize_in_progress=True).count() == 3


@pytest.mark.parametrize("left", [EOFError, KeyboardInterrupt])
def test_no_answer_is_a_no(monkeypatch, left):
    def leave(_question):
        raise left

    orders = [hang(SplitOrderFactory()) for _ in range(11)]
    monkeypatch.setattr("builtins.input", leave)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    out = io.StringIO()
    with pytest.raises(SystemExit) as leaving:
        call_command("recover_stuck", stdout=out)
    assert (leaving.value.code, "nothing has been changed" in out.getvalue()) == (1, True)
    assert SplitOrder.objects.filter(finalize_in_progress=True).count() == len(orders)


def test_nothing_found_leaves_no_plan():
    assert run("--reason", "x") == (
        0,
        {
            "found": [],
            "recovered": [],
            "held": [],
            "quarantined": [],
            "failed": [],
            "unknown": [],
            "not_reset": [],
        },
    )
    assert not Plan.objects.exists()


def test_reason_is_said_where_none_is_given():
    order = hang(SplitOrderFactory())
    run("--threshold", "30")
    record = AuditRecord.objects.get(action=RECOVERED)
    assert (record.target_id, record.reason) == (order.number, "no progress for more than 30 s")


def test_order_that_goes_on_meanwhile_is_gone(monkeypatch):
    moved, stuck = hang(SplitOrderFactory()), hang(SplitOrderFactory())
    start = plans.start

    def progress_first(plan_id, **how):
        SplitOrder.objects.filter(pk=moved.pk).update(finalize_progress_at=db_now())
        return start(plan_id, **how)

    monkeypatch.setattr(plans, "start", progress_first)
    status, document = run()
    assert (status, document["recovered"]) == (1, [stuck.number])
    moved.refresh_from_db()
    assert moved.finalize_in_progress


def test_order_whose_reset_goes_wrong_is_named_and_exits_1(monkeypatch):
    def wrong(order, _request):
        raise RuntimeError(f"cannot reset {order.number}")

    order = hang(SplitOrderFactory())
    monkeypatch.setattr("splits.stuck.reset_locked", wrong)
    status, document = run()
    assert (status, document["recovered"]) == (1, [])
    (failed,) = document["not_reset"]
    assert failed == {
        "number": order.number,
        "why": f"RuntimeError: cannot reset {order.number}",
    }


def test_workers_carry_on_what_is_detached():
    order = hang(SplitOrderFactory())
    assert run("--detach")[1]["recovered"] == []
    run_job("runRecoveryPlans")
    order.refresh_from_db()
    assert (order.status, order.finalize_epoch) == (OrderStatus.READY, 2)


def test_orders_whose_finalization_fails_again_do_not_halt_the_resets(monkeypatch, settings):
    """The next attempt is the finalizer's affair: each hanging order is reset."""
    monkeypatch.setattr("recovery.carrying.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("splits.actions._fared", lambda targets: {
        it.row_id: Seen(Sight.BAD, "failed again") for it in targets
    })  # fmt: skip
    numbers = [hang(SplitOrderFactory()).number for _ in range(25)]
    status, document = run()
    assert (status, document["recovered"]) == (0, numbers)


def test_threshold_is_the_operators():
    order = hang(SplitOrderFactory(), age_s=60)
    assert run("--threshold", "900")[1]["found"] == []
    assert run("--threshold", "30")[1]["recovered"] == [order.number]


def test_no_retry_leaves_the_order_ready_without_a_time():
    order = hang(SplitOrderFactory())
    run("--no-retry")
    order.refresh_from_db()
    assert (order.status, order.next_finalize_at) == (OrderStatus.READY, None)


def test_force_takes_young_and_quarantined_ones():
    young = hang(SplitOrderFactory(), age_s=1)
    quarantined = SplitOrderFactory(at=OrderStatus.QUARANTINED)
    assert run()[1]["found"] == []
    with pytest.raises(CommandError, match="--all") as caught:
        run("--force")
    assert caught.value.returncode == 2
    assert run("--force", "--all")[1]["recovered"] == [young.number, quarantined.number]
    reasons = AuditRecord.objects.filter(target_type="split-order").values_list("reason", flat=True)
    assert set(reasons) == {"forced"}


def test_quarantined_ones_are_reported(settings):
    settings.JOB_STUCK_ALERT_THRESHOLD = 0
    order = hang(SplitOrderFactory())
    document = run()[1]
    assert (document["recovered"], document["quarantined"]) == ([], [order.number])


def test_unknown_number_exits_1():
    status, document = run("SO-none")
    assert (status, document["unknown"]) == (1, ["SO-none"])


@pytest.mark.parametrize("threshold", ["-1", "nan", "1e12"])
def test_impossible_threshold_exits_2(threshold):
    with pytest.raises(CommandError) as caught:
        call_command("recover_stuck", f"--threshold={threshold}")
    assert caught.value.returncode == 2


def test_people_get_text():
    order = hang(SplitOrderFactory())
    out = io.StringIO()
    call_command("recover_stuck", stdout=out)
    assert out.getvalue() == f"1 found: {order.number}\n{order.number}: recovered\n"


def test_people_are_told_why_an_order_they_named_is_left_alone():
    young, done = hang(SplitOrderFactory(), age_s=20), SplitOrderFactory(at=OrderStatus.FINALIZED)
    quarantined = SplitOrderFactory(at=OrderStatus.QUARANTINED)
    out = io.StringIO()
    named = [it.number for it in (young, done, quarantined)]
    call_command("recover_stuck", *named, stdout=out)
    found, *said = out.getvalue().splitlines()
    assert found == "0 found"
    assert re.match(rf"{young.number}: left alone, no progress for [2-9]\d ", said[0])
    assert said[1:] == [
        f"{done.number}: left alone, finalized and not in progress",
        f"{quarantined.number}: left alone, quarantined and not in progress",
    ]


@pytest.mark.mariadb
def test_held_order_is_reported_with_its_holder_and_exits_1():
    order = hang(SplitOrderFactory())
    for _ in range(2):
        hang(SplitOrderFactory())
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("START TRANSACTION")
            cursor.execute("SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE", [order.pk])
            cursor.execute("SELECT CONNECTION_ID()")
            (connection_id,) = cursor.fetchone()
            told, rehearsed = run(order.number, "--dry-run")
            (looked,) = rehearsed["hanging"]
            assert told == 1
            status, document = run()
            cursor.execute("ROLLBACK")  # of one that is merely closed the server may hear later
    finally:
        other.close()
    assert status == 1
    (held,) = document["held"]
    assert len(document["recovered"]) == 2, "who is held holds nobody up"
    assert held["number"] == order.number
    assert held["holder"]["connection_id"] == connection_id
    assert looked["holder"]["connection_id"] == connection_id
    order.refresh_from_db()
    assert order.finalize_in_progress
    assert run("--reason", "again")[1]["recovered"] == [order.number]
    record = AuditRecord.objects.get(action=RECOVERED, target_id=order.number)
    assert record.evidence["held_before"]["connection_id"] == connection_id
