"""Split orders: lots, orders and their finalization."""
