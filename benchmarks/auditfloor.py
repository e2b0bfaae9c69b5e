"""The floor of archiving: the bare driver reads, packs, deletes; it seals and proves nothing."""

import gzip
from pathlib import Path
from typing import Any

from benchmarks import floor

ROWS = 999
COLUMNS = (
    "id, CAST(at AS CHAR), actor, action, target_type, target_id, reason,"
    " `before`, `after`, evidence, run_id"
)


def archive(url: str, path: Path) -> int:
    """Move all audit records into one file; return how many that was."""
    connection = floor.connect(url)
    cursor = connection.cursor()
    moved = last = 0
    with gzip.open(path, "wb", 6) as packed:
        while rows := _page(cursor, last):
            packed.write("".join(map(_line, rows)).encode())
            ids = ",".join(str(row[0]) for row in rows)
            cursor.execute(f"DELETE FROM recovery_auditrecord WHERE id IN ({ids})")
            connection.commit()
            moved, last = moved + len(rows), rows[-1][0]
    connection.close()
    return moved


def read(url: str) -> int:
    """Read all audit records, as sealing has to; return how many there are."""
    connection = floor.connect(url)
    cursor = connection.cursor()
    found = last = 0
    while rows := _page(cursor, last):
        found, last = found + len(rows), rows[-1][0]
    connection.close()
    return found


def _page(cursor: Any, last: int) -> list[Any]:
    cursor.execute(
        f"SELECT {COLUMNS} FROM recovery_auditrecord WHERE id > {last} ORDER BY id LIMIT {ROWS}"
    )
    return list(cursor.fetchall())


def _line(row: tuple[Any, ...]) -> str:
    return "\t".join(map(str, row)) + "\n"
