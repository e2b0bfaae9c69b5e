"""The ledger's rows in Django's admin."""

from ledger.admin import accounts, entries, transactions

__all__ = ["accounts", "entries", "transactions"]
