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
        outstanding = ledger.check_entries(report)
        orders.check_orders(report)
        available = lots.check_lots(report)
        ledger.check_accounts(report, posted=posted, outstanding=outstanding, available=available)
