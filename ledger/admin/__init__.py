"""The ledger's rows in Django's admin."""

from ledger.admin import accounts, entries, letters, proposals, transactions

__all__ = ["accounts", "entries", "letters", "proposals", "transactions"]
