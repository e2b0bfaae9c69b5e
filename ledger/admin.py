"""The ledger's rows in Django's admin, to be read."""

from django.contrib import admin

from ledger.models import Account, OutboxEntry, Posting, Transaction
from recovery.admin import ReadOnlyAdmin, ReadOnlyInline


@admin.register(OutboxEntry)
class OutboxEntryAdmin(ReadOnlyAdmin):
    """Outbox entries; the dead ones are the DLQ."""

    list_display = (
        "event_key",
        "event_type",
        "status",
        "attempts",
        "next_attempt_at",
        "last_error_code",
        "created_at",
        "posted_at",
    )
    list_filter = ("status", "last_error_code")
    search_fields = ("=event_key", "=aggregate")


@admin.register(Account)
class AccountAdmin(ReadOnlyAdmin):
    """Accounts and their balances."""

    list_display = ("code", "unit", "balance", "allow_negative", "closed_at")
    search_fields = ("=code",)


class PostingInline(ReadOnlyInline):
    """A transaction's postings."""

    model = Posting
    fields = ("line", "account", "quantity")


@admin.register(Transaction)
class TransactionAdmin(ReadOnlyAdmin):
    """Posted transactions."""

    list_display = ("event_key", "event_type", "posted_at")
    search_fields = ("=event_key",)
    inlines = (PostingInline,)
