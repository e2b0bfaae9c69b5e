"""Drills: break something on purpose in a disposable order, and prove that it heals."""
