"""Split orders and lots in Django's admin."""

from splits.admin import breakers, lots, orders, proposals, trouble

__all__ = ["breakers", "lots", "orders", "proposals", "trouble"]
