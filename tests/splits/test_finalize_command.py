"""``manage.py finalize``: what it takes, what it reports, how it exits."""

import io
import json

import pytest
from django.core.management import CommandError, call_command

from recovery.models import AuditRecord
from splits.models import OrderStatus, SplitOrder
from tests.factories import SplitOrderFactory, hang
from tests.splits.state import assert_finalized_once, assert_untouched

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> tuple[int, dict]:
    out, status = io.StringIO(), 0
    try:
        call_command("finalize", *arguments, "--json", stdout=out)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    return status, json.loads(out.getvalue())


def test_draft_is_submitted_and_finalized():
    order = SplitOrderFactory(at=OrderStatus.DRAFT)
    assert run(order.number) == (0, {"finalized": [order.number], "failed": [], "skipped": []})
    assert_finalized_once(order)


def test_order_that_is_not_due_is_finalized_now():
    order = SplitOrderFactory()
    SplitOrder.objects.update(next_finalize_at=None)
    assert run(order.number)[0] == 0
    assert_finalized_once(order)


def test_all_ready_takes_the_ready_ones_alone():
    ready = [SplitOrderFactory().number for _ in range(2)]
    draft = SplitOrderFactory(at=OrderStatus.DRAFT)
    SplitOrderFactory(at=OrderStatus.FAILED)
    hang(SplitOrderFactory())
    assert run("--all-ready") == (0, {"finalized": ready, "failed": [], "skipped": []})
    assert_untouched(draft)


def test_nothing_ready_is_no_failure():
    assert run("--all-ready") == (0, {"finalized": [], "failed": [], "skipped": []})


def test_failure_is_reported_with_its_code_and_the_others_go_on(settings):
    bad = SplitOrderFactory(lines=())
    good = SplitOrderFactory()
    status, document = run(bad.number, good.number)
    assert status == 1
    assert document["finalized"] == [good.number]
    (failed,) = document["failed"]
    assert (failed["number"], failed["code"]) == (bad.number, "no_lines")
    assert bad.number in failed["error"]
    assert AuditRecord.objects.get().actor.startswith("cli:")


@pytest.mark.parametrize(
    ("at", "status", "words"),
    [
        (OrderStatus.FAILED, 1, "retry"),
        (OrderStatus.QUARANTINED, 1, "release"),
        (OrderStatus.CANCELLED, 1, "cancelled"),
        (OrderStatus.REVERSED, 1, "reversed"),
        (OrderStatus.FINALIZED, 0, "finalized already"),
    ],
)
def test_order_that_cannot_be_finalized_is_skipped_with_what_to_do(at, status, words):
    order = SplitOrderFactory(at=at)
    actual, document = run(order.number)
    assert actual == status
    assert document["skipped"][0]["number"] == order.number
    assert words in document["skipped"][0]["reason"]


def test_order_in_progress_is_skipped():
    order = hang(SplitOrderFactory())
    status, document = run(order.number)
    assert status == 1
    assert "recover_stuck" in document["skipped"][0]["reason"]


def test_unknown_number_is_said_so_and_the_others_go_on():
    order = SplitOrderFactory()
    status, document = run("SO-none", order.number)
    assert status == 1
    assert document["finalized"] == [order.number]
    assert document["skipped"] == [{"number": "SO-none", "reason": "no such split order"}]


@pytest.mark.parametrize("arguments", [(), ("SO-1", "--all-ready")])
def test_wrong_usage_exits_2(arguments):
    with pytest.raises(CommandError) as caught:
        call_command("finalize", *arguments)
    assert caught.value.returncode == 2


def test_people_get_text():
    order = SplitOrderFactory()
    out = io.StringIO()
    call_command("finalize", order.number, stdout=out)
    assert out.getvalue() == f"{order.number}: finalized\n1 finalized, 0 failed, 0 skipped\n"
