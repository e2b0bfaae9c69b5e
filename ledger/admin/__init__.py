"""The ledger's rows in Django's admin."""

from ledger.admin import accounts, entries, letters, panel, proposals, transactions

__all__ = ["accounts", "entries", "letters", "panel", "proposals", "transactions"]
