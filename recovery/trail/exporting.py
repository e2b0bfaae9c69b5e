"""Export found records for an auditor: JSON lines, CSV, and what proves them beside them."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from recovery.models import AuditArchive, AuditRecord, AuditSeal, AuditSealSpan
from recovery.trail import files
from recovery.trail.lines import COLUMNS, digest_of, hash_of, line_of, rows_of
from recovery.trail.reading import opened
from recovery.trail.verifying import in_order

RECORDS, TABLE, PROOF, CHAIN, SUMS = (
    "records.jsonl",
    "records.csv",
    "proof.jsonl",
    "chain.jsonl",
    "SHA256SUMS",
)
SEALS_AT_ONCE = 500
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet takes a cell that begins so for a formula (OWASP, CSV injection)."""


class NotEmptyError(Exception):
    """This is a file, or a folder with files in it: export into a new folder."""


@dataclass
class Exported:
    """What was exported."""

    records: int = 0
    unsealed: list[int] = field(default_factory=list)
    """Ids of records that no seal has yet."""
    seals: int = 0
    chain: int = 0
    folder: str = ""


def export(found: Iterable[AuditRecord], folder: Path) -> Exported:
    """Write records into a new or empty folder, then the proof; raise NotEmptyError, OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_used = any(folder.iterdir())
    except (FileExistsError, NotADirectoryError):
        is_used = True
    if is_used:
        raise NotEmptyError(f"{folder}: {NotEmptyError.__doc__}")
    done = Exported(folder=str(folder))
    ids = _write_records(found, folder, done)
    seals = _seals_of(ids, done)
    _write_proof(seals, folder / PROOF)
    done.seals = len(seals)
    done.chain = _write_chain(min(seals, default=0), folder / CHAIN)
    _write_sums(folder)
    return done


def _write_records(found: Iterable[AuditRecord], folder: Path, done: Exported) -> list[int]:
    ids = []
    with ExitStack() as opened_files:
        lines = opened_files.enter_context(_opened(folder / RECORDS))
        table = opened_files.enter_context(_opened(folder / TABLE))
        text = opened_files.enter_context(TextIOWrapper(table, encoding="utf-8", newline=""))
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for record in found:
            line = line_of((record.pk, *(getattr(record, name) for name in COLUMNS[1:])))
            lines.write(line)
            writer.writerow(_cells(json.loads(line)))
            ids.append(record.pk)
    done.records = len(ids)
    return sorted(ids)


def _cells(values: Mapping[str, Any]) -> list[str]:
    return [_cell(values[name]) for name in COLUMNS]


def _cell(value: Any) -> str:
    """Return a value as a cell that no spreadsheet runs."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _seals_of(ids: list[int], done: Exported) -> set[int]:
    """Return the numbers of the seals that have the records, and note those that none has."""
    seals: set[int] = set()
    at = 0
    while at < len(ids):
        span = AuditSealSpan.objects.filter(last_id__gte=ids[at]).order_by("last_id").first()
        if span is None or span.first_id > ids[at]:
            done.unsealed.append(ids[at])
            at += 1
            continue
        seals.add(span.seal_id)
        while at < len(ids) and ids[at] <= span.last_id:
            at += 1
    return seals


def _write_proof(seals: set[int], path: Path) -> None:
    """Write each seal with the hashes of all its lines: its digest is the hash of those."""
    with _opened(path) as file:
        moved = set(_write_from_table(file, _write_from_files(file, seals)))
        for seal, lines in _in_table(_write_from_files(file, moved)):
            _write_one(file, seal, lines)


def _write_from_files(file: Any, seals: set[int]) -> set[int]:
    """Write the seals whose records are in archives; return the others."""
    rest = set(seals)
    for archive in _archives_of(seals):
        with opened(archive) as packed:
            for part in files.sealed(packed):
                if part.seal and part.seal.number in rest:
                    rest.discard(part.seal.number)
                    seal = AuditSeal.objects.with_spans().get(pk=part.seal.number)
                    _write_one(file, seal, part.lines)
    return rest


def _archives_of(seals: set[int]) -> Iterator[AuditArchive]:
    """Yield the archives that have any of the seals, of which there may be very many."""
    numbers = sorted(seals)
    known: set[int] = set()
    for at in range(0, len(numbers), SEALS_AT_ONCE):
        some = numbers[at : at + SEALS_AT_ONCE]
        placed = AuditArchive.objects.placed().filter(seals__in=some)
        known.update(placed.values_list("pk", flat=True))
    for pk in sorted(known):
        yield AuditArchive.objects.defer("terms").get(pk=pk)


def _write_from_table(file: Any, seals: set[int]) -> Iterator[int]:
    """Write the seals whose records are in the table; yield those that have left it meanwhile."""
    for seal, lines in _in_table(seals):
        moved = AuditArchive.objects.placed().filter(seals=seal.number)
        if digest_of(map(hash_of, lines)) != seal.digest and moved.exists():
            yield seal.number
        else:
            _write_one(file, seal, lines)


def _in_table(seals: set[int]) -> Iterator[tuple[AuditSeal, list[bytes]]]:
    for number in sorted(seals):
        seal = AuditSeal.objects.defer("marks", "gaps").with_spans().get(pk=number)
        yield seal, [line_of(row) for row in rows_of(seal.ranges())]


def _write_one(file: Any, seal: AuditSeal, lines: Iterable[bytes]) -> None:
    values = json.loads(files.seal_line(seal, seal.ranges()))
    values["lines"] = [hash_of(line) for line in lines]
    file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")


def _write_chain(first: int, path: Path) -> int:
    """Write all seals from the first one concerned to the newest; return how many."""
    count = 0
    with _opened(path) as file:
        for seal in in_order(first) if first else ():
            file.write(files.seal_line(seal, seal.ranges()))
            count += 1
    return count


def _write_sums(folder: Path) -> None:
    """Write what ``sha256sum --check`` reads."""
    sums = []
    for name in (RECORDS, TABLE, PROOF, CHAIN):
        found = sha256()
        with (folder / name).open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
        sums.append(f"{found.hexdigest()}  {name}\n")
    with _opened(folder / SUMS) as file:
        file.write("".join(sums).encode())


def _opened(path: Path) -> BinaryIO:
    """Open a new file that its owner alone may read: payloads are in it."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")
