"""The independent checker: silent where all is well, and it finds each thing broken by hand."""

from contextlib import closing

import pytest

from recovery.models import Job
from recovery.runner import run_job
from splits.finalize import finalize
from splits.models import SplitOrder
from tests.factories import AUTHOR
from tests.faults.checker import NEVER, connect, query, violations
from tests.faults.installation import csv_text, plan_rows
from tests.processes import database_url
from tests.splits.plans import imported

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]

ROWS = plan_rows(3)
NUMBER = ROWS[0]["order_number"]
KEY = f"split-order:{NUMBER}:finalized"
ORDER = f"(SELECT id FROM splits_splitorder WHERE number = '{NUMBER}')"
TRANSACTION = f"(SELECT id FROM ledger_transaction WHERE event_key = '{KEY}')"

BROKEN = {
    "order not finalized": f"UPDATE splits_splitorder SET status = 'ready' WHERE id = {ORDER}",
    "order whose steps are not each there once": (
        f"DELETE FROM splits_finalizestep WHERE name = 'notify' AND order_id = {ORDER}"
    ),
    "step under an epoch its order has not had, or out of turn": (
        f"UPDATE splits_finalizestep SET epoch = 9 WHERE name = 'validate' AND order_id = {ORDER}"
    ),
    "entry not posted": f"UPDATE ledger_outboxentry SET status = 'dead' WHERE event_key = '{KEY}'",
    "entry without its transaction": (
        f"UPDATE ledger_transaction SET content_hash = 'x' WHERE event_key = '{KEY}'"
    ),
    "transaction without its entry": (f"DELETE FROM ledger_outboxentry WHERE event_key = '{KEY}'"),
    "transaction with fewer than two postings": (
        f"DELETE FROM ledger_posting WHERE line > 1 AND transaction_id = {TRANSACTION}"
    ),
    "transaction that does not add up to zero": (
        "UPDATE ledger_posting SET quantity = quantity + 0.000001"
        f" WHERE line = 1 AND transaction_id = {TRANSACTION}"
    ),
    "account whose balance is not the sum of its postings": (
        "UPDATE ledger_account SET balance = balance + 1 WHERE code LIKE 'stock:%' LIMIT 1"
    ),
    "account below zero": "UPDATE ledger_account SET allow_negative = 0",
    "stock in the ledger that is not on the shelves": (
        f"UPDATE splits_lot SET quantity = quantity - 1 WHERE parent_order_id = {ORDER} LIMIT 1"
    ),
    "source lot that is not consumed": (
        "UPDATE splits_lot SET status = 'available' WHERE parent_order_id IS NULL LIMIT 1"
    ),
    "line without its one lot": (
        f"UPDATE splits_lot SET code = CONCAT(code, 'x') WHERE parent_order_id = {ORDER} LIMIT 1"
    ),
    "order with other than as many lots as lines": (
        f"DELETE FROM splits_lot WHERE parent_order_id = {ORDER} LIMIT 1"
    ),
    "entries of one aggregate posted out of order": (
        "UPDATE ledger_outboxentry SET posted_at = posted_at - INTERVAL 1 DAY"
        f" WHERE event_key = '{KEY}'"
    ),
    "recovery that is not in the audit": (
        f"UPDATE splits_splitorder SET recovery_count = 1 WHERE id = {ORDER}"
    ),
    "epoch recovered twice": (
        "INSERT INTO recovery_auditrecord (actor, action, target_type, target_id, reason, `before`,"
        " `after`, evidence) SELECT 'test', 'split-order-finalize-stuck-recovered', 'split-order',"
        f" '{NUMBER}', '', '{{}}', '{{}}', '{{\"epoch\": 1}}' FROM splits_splitorder LIMIT 2"
    ),
    "order blamed, or given up": (
        "INSERT INTO recovery_auditrecord (actor, action, target_type, target_id, reason, `before`,"
        " `after`, evidence) VALUES ('test', 'split-order-quarantined', 'split-order',"
        f" '{NUMBER}', '', '{{}}', '{{}}', '{{}}')"
    ),
    "fence used by two runs": "UPDATE recovery_jobrun SET fence = 1",
    "orders: ": f"UPDATE splits_splitorder SET number = 'other' WHERE id = {ORDER}",
    "transactions: ": (
        f"UPDATE ledger_transaction SET event_key = 'other' WHERE event_key = '{KEY}'"
    ),
    "lines: ": f"UPDATE splits_splitline SET sku = 'other' WHERE order_id = {ORDER} LIMIT 1",
    "balances: ": "UPDATE ledger_account SET code = CONCAT(code, 'x') LIMIT 1",
}


@pytest.fixture
def settled(settings):
    """Import three orders, finalize and post them; return a connection that may be rolled back."""
    settings.REDIS_URL = ""
    Job.objects.get_or_create(name="processLedgerOutbox")
    imported(csv_text(ROWS).encode(), finalize=True)
    for order_id in SplitOrder.objects.values_list("pk", flat=True):
        finalize(order_id, author=AUTHOR)
        run_job("processLedgerOutbox")
    with closing(connect(database_url())) as link:
        link.autocommit(False)
        yield link


def test_checker_is_silent_where_all_is_well_and_finds_each_thing_broken(settled):
    assert violations(settled, ROWS) == []
    query(settled, "SET FOREIGN_KEY_CHECKS = 0")
    for what, statement in BROKEN.items():
        query(settled, statement)
        found = violations(settled, ROWS)
        settled.rollback()
        assert any(what in problem for problem in found), f"{what} was not found among {found}"
    assert violations(settled, ROWS) == []


def test_each_of_its_questions_was_tried():
    assert set(NEVER) < set(BROKEN)
