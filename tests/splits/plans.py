"""Cut plans for tests: CSV text, and what an import made of it."""

import io
from contextlib import contextmanager

from django.db import connection

from splits.cutplans import HEADER, Fault
from splits.imports import Import

HEAD = ",".join(HEADER)


def row(number="SO-1", line=1, quantity="10", **columns):
    """Return one CSV row; the board is named after the order."""
    values = {
        "order_number": number,
        "board_code": f"B-{number}",
        "board_sku": "OAK",
        "board_quantity": "10",
        "unit": "m2",
        "line": line,
        "kind": "piece",
        "sku": "OAK-S",
        "quantity": quantity,
    } | columns
    return ",".join(str(values[name]) for name in HEADER)


def order(number="SO-1", quantities=("4.5", "5.5"), **columns):
    """Return the rows of one order."""
    return [row(number, line, q, **columns) for line, q in enumerate(quantities, start=1)]


def plan(*rows, end="\n"):
    """Return a file of these rows (text or bytes) under the right header."""
    lines = [it if isinstance(it, bytes) else it.encode() for it in (HEAD, *rows)]
    return b"".join(line + end.encode() for line in lines)


def imported(data, *, finalize=False):
    """Import the bytes; return the import and its faults as (row, number, message)."""
    faults: list[Fault] = []
    task = Import(finalize=finalize, on_fault=faults.append)
    task.run(io.BytesIO(data))
    return task, [(it.row, it.order_number, it.message) for it in faults]


@contextmanager
def at_most_statements(limit):
    """Fail where more statements are executed; Django's own count is lost when its log is reset."""
    seen = []

    def note(execute, sql, *rest):
        seen.append(sql)
        return execute(sql, *rest)

    with connection.execute_wrapper(note):
        yield
    assert 0 < len(seen) <= limit, f"{len(seen)} statements"
