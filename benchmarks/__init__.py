"""Benchmarks: everything as a ratio to its floor, measured in one run."""
