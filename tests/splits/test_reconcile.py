"""Reconcile: silent where all agrees, one finding where one thing is broken by hand."""

import io
import json
import shlex
import time
from decimal import Decimal

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from ledger import outbox
from ledger.models import Account, EntryStatus, OutboxEntry, Posting, Transaction
from recovery.audit import cli_actor
from recovery.commands import UsageError
from recovery.models import AuditRecord, Job
from recovery.runner import run_job
from splits import lifecycle
from splits.finalize import finalize
from splits.models import FinalizeStep, Lot, OrderStatus, SplitLine, SplitOrder, StepName
from splits.reconcile import Report, reconcile
from splits.reconcile.reading import WINDOW, Trace, snapshot, windows
from tests.factories import AUTHOR, LotFactory, SplitOrderFactory
from tests.ledger.entries import Background, somebody_waits
from tests.splits.plans import at_most_statements, imported, order, plan
from tests.splits.processes import manage
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "split-order:SO-1:finalized"


@pytest.fixture(autouse=True)
def job(settings):
    """The posting job's row; no Redis."""
    settings.REDIS_URL = ""
    Job.objects.get_or_create(name="processLedgerOutbox")


def sql(statement, *parameters):
    """Change the database behind everybody's back; return the rows changed."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.rowcount


def post():
    outcome = run_job("processLedgerOutbox")
    assert outcome.status == "ok", outcome


def found():
    findings = []
    report = Report(on_finding=findings.append)
    reconcile(report)
    assert report.findings == len(findings)
    for finding in findings:
        assert all(finding.as_dict().values()), finding
    return [(it.kind, it.target) for it in findings]


def entry(key=KEY):
    return OutboxEntry.objects.get(event_key=key)


def publish(key, *lines):
    with transaction.atomic():
        return outbox.publish(
            event_key=key,
            event_type="by-hand",
            aggregate="by:hand",
            lines=[outbox.Line(account, Decimal(q), "m2") for account, q in lines],
        )


@pytest.fixture
def orders():
    """Two orders, finalized, not posted yet."""
    imported(plan(*order("SO-1"), *order("SO-2", ("3", "7"))), finalize=True)
    for one in SplitOrder.objects.all():
        finalize(one.pk, author=AUTHOR, now=True)


@pytest.fixture
def posted(orders):
    """Two orders, finalized and posted."""
    post()
    assert found() == []


# What agrees


def test_nothing_at_all_agrees():
    assert found() == []


def test_pending_entries_count_as_in_flight(orders):
    report = Report()
    reconcile(report)
    assert (report.ok, report.in_flight) == (True, 4)
    post()
    report = Report()
    reconcile(report)
    assert (report.ok, report.in_flight) == (True, 0)
    assert report.checked == {
        "transactions": 4, "postings": 10, "entries": 4, "orders": 2, "lots": 6, "accounts": 3,
    }  # fmt: skip


@pytest.mark.parametrize("status", list(OrderStatus))
def test_order_in_any_status_agrees(status):
    imported(plan(*order("SO-1")))
    post()
    lot = Lot.objects.get()
    SplitOrder.objects.all().delete()
    SplitOrderFactory(source_lot=lot, at=status)
    assert found() == []
    post()
    assert found() == []


def test_board_that_is_reversed_and_split_again_agrees(posted):
    lifecycle.reverse(SplitOrder.objects.get(number="SO-1").pk, author=AUTHOR)
    assert found() == []
    imported(plan(*order("SO-3", ("1", "9"), board_code="B-SO-1")), finalize=True)
    finalize(SplitOrder.objects.get(number="SO-3").pk, author=AUTHOR, now=True)
    assert Lot.objects.filter(code__contains="~").count() == 2
    assert found() == []
    post()
    assert found() == []


def test_child_that_is_split_again_agrees(posted):
    columns = {"board_code": "B-SO-1-001", "board_sku": "OAK-S", "board_quantity": "4.5"}
    imported(plan(*order("SO-3", ("4", "0.5"), sku="OAK-XS", **columns)), finalize=True)
    finalize(SplitOrder.objects.get(number="SO-3").pk, author=AUTHOR, now=True)
    assert found() == []
    post()
    assert found() == []


@pytest.mark.parametrize("steps", range(6))
def test_finalization_that_was_cut_after_any_step_agrees(steps):
    imported(plan(*order("SO-1")), finalize=True)
    cut = "before_finish" if steps == 5 else f"before_step.{list(StepName)[steps].value}"
    process = manage("finalize", "SO-1", RECOVERY_FAULTPOINTS=f"finalize.{cut}=crash")
    process.communicate(timeout=150)
    assert process.returncode == -9
    assert FinalizeStep.objects.count() == steps
    assert SplitOrder.objects.get().finalize_in_progress
    assert found() == []
    post()
    assert found() == []


def test_entries_that_retention_removed_are_not_missed(posted):
    OutboxEntry.objects.all().delete()
    assert found() == []


def test_movements_by_hand_are_none_of_its_business(posted):
    publish("count:1", ("external:scrap", "-1"), ("external:receipts", "1"))
    Account.objects.create(code="external:scrap", unit="m2", allow_negative=True)
    post()
    assert found() == []


# What does not


def test_transaction_with_one_posting_only(posted):
    publish("odd:1", ("external:receipts", "0"), ("external:receipts", "0"))
    post()
    odd = Transaction.objects.get(event_key="odd:1")
    sql("DELETE FROM ledger_posting WHERE transaction_id = %s AND line <> 1", odd.pk)
    assert Posting.objects.filter(transaction=odd).count() == 1
    assert found() == [("transaction_too_few_postings", f"transaction:{odd.pk} odd:1")]


def test_transaction_that_does_not_balance(posted):
    publish("odd:1", ("external:receipts", "1"), ("external:receipts", "-1"))
    post()
    OutboxEntry.objects.filter(event_key="odd:1").delete()
    odd = Transaction.objects.get(event_key="odd:1")
    assert sql(
        "UPDATE ledger_posting SET quantity = 3 WHERE transaction_id = %s AND quantity = 1", odd.pk
    )
    assert sql("UPDATE ledger_account SET balance = balance + 2 WHERE code = 'external:receipts'")
    assert found() == [("transaction_unbalanced", f"transaction:{odd.pk} odd:1")]


def test_balance_that_was_changed_by_hand(posted):
    sql("UPDATE ledger_account SET balance = balance + 0.000001 WHERE code = 'stock:OAK-S'")
    assert found() == [("balance_differs_from_postings", "account:stock:OAK-S [m2]")]


def test_account_that_has_a_balance_and_no_postings(posted):
    Account.objects.create(code="stock:GHOST", unit="m2", balance=1)
    assert found() == [("balance_differs_from_postings", "account:stock:GHOST [m2]")]


def test_order_whose_entry_is_gone(orders):
    sql("DELETE FROM ledger_outboxentry WHERE event_key = %s", KEY)
    assert found() == [("order_without_ledger_entry", "split-order:SO-1")]
    post()
    assert found() == [("order_without_ledger_entry", "split-order:SO-1")]


def test_order_whose_entry_was_discarded(orders):
    OutboxEntry.objects.filter(event_key=KEY).update(status=EntryStatus.DISCARDED)
    assert found() == [("order_without_ledger_entry", "split-order:SO-1")]


def test_reversed_order_whose_reversal_is_gone(posted):
    lifecycle.reverse(SplitOrder.objects.get(number="SO-1").pk, author=AUTHOR)
    sql("DELETE FROM ledger_outboxentry WHERE event_key = %s", "split-order:SO-1:reversed")
    assert found() == [("order_without_ledger_entry", "split-order:SO-1")]


@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize("verb", ["finalized", "reversed"])
def test_entry_of_an_order_that_does_not_exist(posted, verb, retained):
    key = f"split-order:GHOST:{verb}"
    publish(key, ("external:receipts", "1"), ("external:receipts", "-1"))
    post()
    if not retained:
        sql("DELETE FROM ledger_outboxentry WHERE event_key = %s", key)
    assert found() == [("ledger_entry_without_order", key)]


def test_reversal_of_an_order_that_is_not_reversed(posted):
    key = "split-order:SO-1:reversed"
    publish(key, ("external:receipts", "1"), ("external:receipts", "-1"))
    assert found() == [("ledger_entry_without_order", key)]


def test_entry_of_an_order_that_is_not_there_yet(posted):
    imported(plan(*order("SO-3")))
    post()
    key = "split-order:SO-3:finalized"
    publish(key, ("external:receipts", "1"), ("external:receipts", "-1"))
    assert found() == [("ledger_entry_without_order", key)]


def test_postings_that_are_not_the_order_s_lines(posted):
    # Line, child lot and stock are changed alike; only the order's own postings are not.
    line = SplitLine.objects.get(order__number="SO-1", line=1)
    sql("UPDATE splits_splitline SET sku = 'ASH-S' WHERE id = %s", line.pk)
    sql("UPDATE splits_lot SET sku = 'ASH-S' WHERE code = 'B-SO-1-001'")
    publish("by-hand:1", ("stock:OAK-S", "-4.5"), ("stock:ASH-S", "4.5"))
    post()
    assert found() == [("order_postings_differ_from_lines", "split-order:SO-1")]


def test_order_that_was_posted_twice(posted, monkeypatch):
    # The unique key forbids it; the check is shown what a database without the key would hold.
    from splits.reconcile import orders as module

    real = module.traces

    def doubled(keys):
        known = real(keys)
        if KEY in known:
            known[KEY].transactions.append(known[KEY].transactions[0] + 1)
        return known

    monkeypatch.setattr(module, "traces", doubled)
    assert found() == [("order_posted_twice", "split-order:SO-1")]


def test_child_lot_that_was_renamed(posted):
    assert sql("UPDATE splits_lot SET code = 'B-SO-1-999' WHERE code = 'B-SO-1-001'")
    assert found() == [("child_lots_differ_from_lines", "split-order:SO-1")]


def test_child_lot_that_is_gone(posted):
    sql("DELETE FROM splits_lot WHERE code = 'B-SO-1-001'")
    publish("by-hand:1", ("stock:OAK-S", "-4.5"), ("external:receipts", "4.5"))
    post()
    assert found() == [("child_lots_differ_from_lines", "split-order:SO-1")]


def test_child_lot_with_another_quantity(posted):
    sql("UPDATE splits_lot SET quantity = 4 WHERE code = 'B-SO-1-001'")
    sql("UPDATE splits_lot SET quantity = 6 WHERE code = 'B-SO-1-002'")
    assert found() == [("child_lots_differ_from_lines", "split-order:SO-1")]


def test_child_lots_before_their_step(posted):
    imported(plan(*order("SO-3")))
    third = SplitOrder.objects.get(number="SO-3")
    LotFactory(
        code="B-SO-3-001", sku="OAK-S", quantity="4.5", parent_order=third, root_code="B-SO-3"
    )
    publish("by-hand:1", ("stock:OAK-S", "4.5"), ("external:receipts", "-4.5"))
    assert found() == [("child_lots_differ_from_lines", "split-order:SO-3")]


def test_child_lot_of_a_reversed_order_that_is_available(posted):
    lifecycle.reverse(SplitOrder.objects.get(number="SO-1").pk, author=AUTHOR)
    sql("UPDATE splits_lot SET status = 'available' WHERE code = 'B-SO-1-001'")
    publish("by-hand:1", ("stock:OAK-S", "4.5"), ("external:receipts", "-4.5"))
    assert found() == [("child_lots_differ_from_lines", "split-order:SO-1")]


def test_source_lot_that_is_available_again(posted):
    sql("UPDATE splits_lot SET status = 'available' WHERE code = 'B-SO-1'")
    publish("by-hand:1", ("stock:OAK", "10"), ("external:receipts", "-10"))
    assert found() == [("source_lot_not_consumed", "split-order:SO-1")]


def test_lot_consumed_by_nobody(posted):
    imported(plan(*order("SO-3")))
    sql("UPDATE splits_lot SET status = 'consumed' WHERE code = 'B-SO-3'")
    publish("by-hand:1", ("stock:OAK", "-10"), ("external:receipts", "10"))
    assert found() == [("lot_consumed_without_order", "lot:B-SO-3")]


def test_lot_that_was_never_received(posted):
    LotFactory(code="GHOST")
    assert found() == [("lot_without_receipt", "lot:GHOST")]


def test_receipt_of_no_lot(posted):
    key = "lot:GHOST:received"
    publish(key, ("external:receipts", "1"), ("external:receipts", "-1"))
    assert found() == [("receipt_without_lot", key)]


def test_receipt_of_another_quantity(posted):
    LotFactory(code="ODD")
    publish("lot:ODD:received", ("stock:OAK", "9"), ("external:receipts", "-9"))
    publish("by-hand:1", ("stock:OAK", "1"), ("external:receipts", "-1"))
    assert found() == [("receipt_differs_from_lot", "lot:ODD")]


def test_posted_entry_whose_transaction_is_gone(posted):
    publish("odd:1", ("external:receipts", "1"), ("external:receipts", "-1"))
    post()
    odd = entry("odd:1")
    sql("DELETE FROM ledger_posting WHERE transaction_id = %s", odd.pk)
    sql("DELETE FROM ledger_transaction WHERE id = %s", odd.pk)
    assert found() == [("posted_entry_without_transaction", f"entry:{odd.pk} odd:1")]


def test_transaction_with_another_hash_than_its_entry(posted):
    sql("UPDATE ledger_transaction SET content_hash = 'x' WHERE event_key = %s", KEY)
    assert found() == [
        ("transaction_content_differs_from_entry", f"transaction:{entry().pk} {KEY}")
    ]


def test_postings_on_other_accounts_than_the_entry_s(posted):
    publish("odd:1", ("external:receipts", "1"), ("external:receipts", "-1"))
    Account.objects.create(code="external:x", unit="m2", balance=1, allow_negative=True)
    post()
    odd = entry("odd:1")
    sql(
        "UPDATE ledger_posting SET account_id = (SELECT id FROM ledger_account WHERE code = "
        "'external:x') WHERE transaction_id = %s AND quantity > 0",
        odd.pk,
    )
    sql("UPDATE ledger_account SET balance = balance - 1 WHERE code = 'external:receipts'")
    assert found() == [("transaction_content_differs_from_entry", f"transaction:{odd.pk} odd:1")]


def test_payload_that_was_changed_by_hand(posted):
    odd = publish("odd:1", ("external:receipts", "1"), ("external:receipts", "-1"))
    payload = json.dumps(odd.payload | {"note": "changed"})
    sql("UPDATE ledger_outboxentry SET payload = %s WHERE id = %s", payload, odd.pk)
    assert found() == [("entry_content_differs_from_hash", f"entry:{odd.pk} odd:1")]


def test_dead_entry_is_one_finding_and_counted(orders):
    sql("UPDATE ledger_outboxentry SET status = 'dead' WHERE event_key = %s", KEY)
    report = Report()
    reconcile(report)
    assert (report.findings, report.in_flight, report.checked["dead"]) == (1, 3, 1)
    assert found() == [("entry_dead", f"entry:{entry().pk} {KEY}")]


def test_stock_that_is_not_in_the_lots(posted):
    publish("by-hand:1", ("stock:OAK-S", "1"), ("external:receipts", "-1"))
    assert found() == [("stock_differs_from_lots", "account:stock:OAK-S [m2]")]
    post()
    assert found() == [("stock_differs_from_lots", "account:stock:OAK-S [m2]")]


def test_stock_on_an_account_that_is_not_there_yet(posted):
    publish("by-hand:1", ("stock:NEW", "1"), ("external:receipts", "-1"))
    assert found() == [("stock_differs_from_lots", "account:stock:NEW [m2]")]


def test_step_that_is_missing_before_a_later_one(orders):
    first = SplitOrder.objects.get(number="SO-1")
    sql("UPDATE splits_splitorder SET status = 'failed' WHERE id = %s", first.pk)
    assert found() == []
    sql("DELETE FROM splits_finalizestep WHERE order_id = %s AND name = 'create_outputs'", first.pk)
    assert found() == [("steps_missing", "split-order:SO-1")]


@pytest.mark.parametrize("step", list(StepName))
def test_finalized_order_with_an_open_step(posted, step):
    sql("DELETE FROM splits_finalizestep WHERE name = %s", step.value)
    kind = "finalized_with_open_steps"
    assert found() == [(kind, "split-order:SO-1"), (kind, "split-order:SO-2")]


# How it reads


def test_it_sees_one_moment_while_others_write(posted):
    """What is committed inside the snapshot is not seen, and the writer does not wait."""
    with snapshot():
        before = Lot.objects.count()
        process = manage("import_splits", "splits/sample/cut_plans.csv", "--json")
        out, err = process.communicate(timeout=150)
        assert (process.returncode, json.loads(out)["imported"]) == (0, 120), err
        assert Lot.objects.count() == before
    assert Lot.objects.count() == before + 120
    assert not connection.in_atomic_block


def test_snapshot_ends_though_the_reader_fails():
    with pytest.raises(ValueError, match="no"), snapshot():
        raise ValueError("no")
    with transaction.atomic():
        LotFactory()
    assert Lot.objects.count() == 1


def test_statements_grow_with_windows_not_with_rows(orders):
    imported(plan(*(line for n in range(200) for line in order(f"X-{n:03d}"))))
    with at_most_statements(60):
        reconcile(Report())


def test_windows_cover_every_row_once():
    for _ in range(7):
        LotFactory()
    found = [
        list(Lot.objects.filter(part).values_list("pk", flat=True)) for part in windows(Lot, 3)
    ]
    assert [len(part) for part in found] == [3, 3, 1]
    assert sorted(pk for part in found for pk in part) == sorted(
        Lot.objects.values_list("pk", flat=True)
    )
    assert WINDOW >= 100


def test_trace_of_nothing_does_not_exist():
    assert not Trace().exists()
    assert not Trace(entry_id=1, entry_status=EntryStatus.DISCARDED).exists()
    assert Trace(entry_id=1, entry_status=EntryStatus.DEAD).exists()


# The command


def run(*options):
    out = io.StringIO()
    try:
        call_command("reconcile", *options, stdout=out)
    except SystemExit as left:
        return left.code, out.getvalue()
    return 0, out.getvalue()


def test_command_exits_0_where_all_agrees(posted):
    status, out = run()
    assert status == 0
    assert "everything agrees" in out
    status, out = run("--json")
    document = json.loads(out)
    assert (status, document["ok"], document["findings"], document["in_flight"]) == (0, True, [], 0)
    assert document["checked"]["orders"] == 2


BROKEN = {
    "balance_differs_from_postings": "ledger_account SET balance = 3 WHERE code = 'stock:OAK-S'",
    "source_lot_not_consumed": "splits_lot SET status = 'available' WHERE code = 'B-SO-1'",
    "lot_consumed_without_order": "splits_lot SET status = 'consumed' WHERE code = 'B-SO-1-001'",
}


def proposed(kind, why="INC-7: a script"):
    """Return the arguments of the command that is proposed for a finding of this kind."""
    (finding,) = [it for it in json.loads(run("--json")[1])["findings"] if it["kind"] == kind]
    assert set(finding) == {"kind", "target", "expected", "found", "repair"}
    manage_py, command, *arguments, reason = shlex.split(finding["repair"])
    assert (manage_py, command, reason) == ("manage.py", "reconcile", "…")
    return [*arguments, why]


@pytest.mark.parametrize("kind", BROKEN)
def test_repair_that_is_proposed_works_once_and_is_on_the_record(posted, kind):
    sql(f"UPDATE {BROKEN[kind]}")
    assert run()[0] == 1
    command = proposed(kind)
    assert run(*command) == (0, f"repaired: {kind} {command[2]}\n")
    assert run()[0] == 0
    record = AuditRecord.objects.latest("id")
    assert (record.actor, record.reason) == (cli_actor(), "INC-7: a script")
    assert record.before != record.after
    assert command[2].endswith(record.target_id) or record.evidence["order"] == "SO-1"
    status, out = run(*command)
    assert (status, "nothing was changed" in out) == (1, True)
    assert json.loads(run(*command, "--json")[1])["repaired"] is False
    assert AuditRecord.objects.latest("id") == record


def test_balance_without_postings_is_corrected_to_zero(posted):
    Account.objects.create(code="stock:NEW", unit="m2", balance=5)
    run(*proposed("balance_differs_from_postings"))
    assert (Account.objects.get(code="stock:NEW").balance, run()[0]) == (0, 0)


def test_repair_waits_for_nothing_that_is_not_so(posted):
    for kind, target in (
        ("lot_consumed_without_order", "lot:B-SO-1"),
        ("lot_consumed_without_order", "lot:nowhere"),
        ("source_lot_not_consumed", "split-order:SO-1"),
        ("source_lot_not_consumed", "split-order:nowhere"),
        ("balance_differs_from_postings", "account:stock:OAK-S [m2]"),
        ("balance_differs_from_postings", "account:nowhere [m2]"),
    ):
        assert run("--repair", kind, target, "--reason", "why")[0] == 1, target


def test_source_lot_that_was_cancelled_is_not_consumed_again(posted):
    sql("UPDATE splits_lot SET status = 'cancelled' WHERE code = 'B-SO-1'")
    findings = json.loads(run("--json")[1])["findings"]
    (finding,) = [it for it in findings if it["kind"] == "source_lot_not_consumed"]
    assert "by hand" in finding["repair"]
    asked = ("--repair", "source_lot_not_consumed", "split-order:SO-1", "--reason", "why")
    assert run(*asked)[0] == 1


def test_source_lot_of_an_order_that_has_not_come_to_it_stays_available(posted):
    SplitOrderFactory(number="SO-9", at=OrderStatus.READY)
    asked = ("--repair", "source_lot_not_consumed", "split-order:SO-9", "--reason", "why")
    assert run(*asked)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repair", "lot_without_receipt", "lot:X", "--reason", "w"], "repaired by hand"),
        (["--repair", "lot_consumed_without_order", "SO-1", "--reason", "w"], "about lot:"),
        (
            ["--repair", "balance_differs_from_postings", "account:x", "--reason", "w"],
            r"account:CODE \[UNIT\]",
        ),
        (["--repair", "lot_consumed_without_order", "lot:X"], "needs --reason"),
        (["--repair", "lot_consumed_without_order", "lot:X", "--reason", " "], "needs --reason"),
        (["--reason", "w"], "goes with --repair"),
    ],
)
def test_repair_that_is_asked_for_wrongly_says_how(arguments, words):
    with pytest.raises(UsageError, match=words):
        call_command("reconcile", *arguments)
    assert not AuditRecord.objects.exists()


@pytest.mark.mariadb
def test_correction_waits_for_a_batch_that_posts_and_counts_what_it_posted(
    posted, second_connection
):
    sql(f"UPDATE {BROKEN['balance_differs_from_postings']}")
    second_connection.set_autocommit(False)
    with second_connection.cursor() as cursor:
        cursor.execute("UPDATE ledger_account SET balance = balance + 5 WHERE code = 'stock:OAK-S'")
        cursor.execute(
            "INSERT INTO ledger_transaction (id, event_key, event_type, content_hash)"
            " VALUES (999, 'meanwhile', 'by-hand', 'x')"
        )
        cursor.execute(
            "INSERT INTO ledger_posting (transaction_id, line, account_id, quantity)"
            " SELECT 999, 1, id, 5 FROM ledger_account WHERE code = 'stock:OAK-S'"
        )
    arguments = proposed("balance_differs_from_postings")
    correcting = Background(lambda: run(*arguments))
    eventually(somebody_waits)
    second_connection.commit()
    assert correcting.result()[0] == 0
    assert Account.objects.get(code="stock:OAK-S").balance == 25


def test_command_prints_findings_as_text(posted):
    sql(f"UPDATE {BROKEN['source_lot_not_consumed']}")
    status, out = run()
    assert status == 1
    assert "source_lot_not_consumed  split-order:SO-1" in out
    assert "repair   manage.py reconcile --repair source_lot_not_consumed split-order:SO-1" in out
    assert "2 findings" in out


@pytest.mark.mariadb
def test_reader_who_takes_his_time_with_a_finding_loses_no_snapshot():
    imported(plan(*order("SO-1"), *order("SO-2")))
    sql("UPDATE splits_lot SET quantity = quantity + 1")
    sql("SET idle_transaction_timeout = 1")
    findings = []

    def read(finding):
        findings.append(finding)
        if len(findings) == 1:
            time.sleep(2.5)  # longer than the server waits for others

    try:
        reconcile(Report(on_finding=read))
    finally:
        connection.close()  # later tests take their time too
    assert len(findings) > 1
