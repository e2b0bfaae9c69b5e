"""``manage.py recover_stuck``: what it takes, what it reports, how it exits."""

import io
import json

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from recovery.models import AuditRecord
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
        "found": numbers,
        "recovered": numbers,
        "held": [],
        "quarantined": [],
        "failed": [],
        "unknown": [],
    }
    assert set(AuditRecord.objects.values_list("reason", flat=True)) == {"worker lost"}


def test_only_the_numbers_given_are_recovered():
    wanted, other = hang(SplitOrderFactory()), hang(SplitOrderFactory())
    assert run(wanted.number)[1]["recovered"] == [wanted.number]
    other.refresh_from_db()
    assert other.finalize_in_progress


def test_dry_run_changes_nothing():
    order = hang(SplitOrderFactory())
    status, document = run("--dry-run")
    assert (status, document["found"], document["recovered"]) == (0, [order.number], [])
    order.refresh_from_db()
    assert order.finalize_in_progress


def test_threshold_is_the_operators():
    order = hang(SplitOrderFactory(), age_s=60)
    assert run("--threshold", "90")[1]["found"] == []
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
    assert run("--force")[1]["recovered"] == [young.number, quarantined.number]


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


@pytest.mark.mariadb
def test_held_order_is_reported_with_its_holder_and_exits_1():
    order = hang(SplitOrderFactory())
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("START TRANSACTION")
            cursor.execute("SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE", [order.pk])
            cursor.execute("SELECT CONNECTION_ID()")
            (connection_id,) = cursor.fetchone()
            status, document = run()
    finally:
        other.close()
    assert status == 1
    (held,) = document["held"]
    assert held["number"] == order.number
    assert held["holder"]["connection_id"] == connection_id
    assert SplitOrder.objects.get().finalize_in_progress
