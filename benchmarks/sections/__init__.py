"""One module a section; each has ``measure``, which returns its table."""
