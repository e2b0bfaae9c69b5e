"""How long the ledger keeps what it needs no more."""

from datetime import datetime

from ledger.models import Account, OutboxEntry, OutboxQuerySet, Posting, Transaction
from recovery.retention import keep_for_ever, retention

keep_for_ever(Account, Transaction, Posting)


@retention("outbox_entries", days_setting="OUTBOX_RETENTION_DAYS", by="created_at")
def posted_entries(before: datetime) -> OutboxQuerySet:
    """Posted entries: their transactions keep keys and hashes for ever.

    Discarded ones stay: they alone keep their keys from being published and posted once more.
    """
    return OutboxEntry.objects.posted_before(before)
