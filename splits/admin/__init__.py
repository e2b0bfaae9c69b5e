"""Split orders and lots in Django's admin."""

from splits.admin import breakers, lots, orders, panel, proposals, trouble

__all__ = ["breakers", "lots", "orders", "panel", "proposals", "trouble"]
