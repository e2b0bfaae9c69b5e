"""Compare split orders, outbox, ledger, balances and lots; say what disagrees."""

from splits.reconcile import ledger, lots, orders
from splits.reconcile.findings import Finding, Report
from splits.reconcile.reading import snapshot

__all__ = ["Finding", "Report", "reconcile"]


def reconcile(report: Report) -> None:
    """Check everything in one consistent snapshot; findings go to ``report`` as they are made.

    Memory grows with the number of accounts, not with that of orders, entries or postings.
    """
    with snapshot():
        posted = ledger.check_transactions(report)
        # What the ledger will hold once all is posted, published and repaired: a receipt in
        # the DLQ is one finding, not another one for the stock that misses it.
        under_way = ledger.check_entries(report)
        orders.check_orders(report, under_way)
        available = lots.check_lots(report, under_way)
        ledger.check_accounts(report, posted=posted, under_way=under_way, available=available)
