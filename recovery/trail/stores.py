"""Where archives lie, through Django's storage API: written aside, read back, then in place."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Self

from django.core.files import File
from django.core.files.storage import Storage, storages

from recovery.models import AuditArchive, Tier

ALIASES = {Tier.WARM: "audit_archive", Tier.COLD: "audit_cold"}
CHUNK = 1 << 20
ASIDE = ".part"
LOOKED_FOR = 3
YEAR, MONTH = re.compile(r"\d{4}"), re.compile(r"\d\d")
FILE = re.compile(r"audit-.*\.jsonl\.gz")
ABANDONED_S = 3_600.0
"""What was written aside so long ago nobody goes on with."""


class StoreError(OSError):
    """The store of the archives did not do what it was asked to."""

    def __init__(self, text: str = "") -> None:
        """Say what went wrong, or what the class says."""
        super().__init__(text or type(self).__doc__)


@dataclass
class Draft:
    """A file that is being written aside: hashed as it is written."""

    file: IO[bytes]
    path: Path | None = None
    """Where it is, in a folder; a bucket's is in a temporary file of this host."""
    size: int = 0
    is_noted: bool = False
    """It is named in the database: whoever goes on needs it, if it is not in its place yet."""
    _sha: Any = field(default_factory=sha256)

    @property
    def aside(self) -> str:
        """Return the name of the file aside; empty: nobody else could go on with it."""
        return self.path.name if self.path else ""

    @property
    def sha256(self) -> str:
        """Return the hash of what was written."""
        return str(self._sha.hexdigest())

    def write(self, data: bytes) -> int:
        """Write, and hash what is written."""
        self._sha.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        """Hand over to the operating system what was written."""
        self.file.flush()

    def read_back(self) -> None:
        """Write all of it to the disk and compare what it has; raise StoreError."""
        self.file.flush()
        os.fsync(self.file.fileno())
        with Path(self.file.name).open("rb") as written:
            found = _hash_of(written)
        if found != self.sha256:
            raise StoreError(f"what was written aside reads otherwise: {self.file.name}")


class Asking:
    """A file of a store that is read as it is asked for; whatever goes wrong is a StoreError."""

    def __init__(self, file: Any, asking: Callable[[], AbstractContextManager[None]]) -> None:
        """Read from ``file``."""
        self._file, self._asking = file, asking
        self._first = b""

    def begin(self) -> Self:
        """Read the first byte: a bucket looks for the file no sooner. Raises StoreError."""
        self._first = self.read(1)
        return self

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes; raise StoreError."""
        first, self._first = self._first, b""
        with self._asking():
            return first + bytes(self._file.read(size - len(first) if size > 0 else size))


class Hashing:
    """Hashes a file while it is read, so that it is opened once."""

    def __init__(self, file: Any) -> None:
        """Read from ``file``."""
        self._file, self._sha = file, sha256()

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes."""
        data: bytes = self._file.read(size)
        self._sha.update(data)
        return data

    def to_its_end(self) -> str:
        """Read what is left, and return the SHA-256 of the file."""
        while self.read(CHUNK):
            pass
        return self._sha.hexdigest()


class Store:
    """The files of one tier."""

    def __init__(self, tier: str) -> None:
        """Take the storage of ``tier``."""
        self.tier = tier
        self.alias = ALIASES[Tier(tier)]
        self.storage: Storage = storages[self.alias]

    def path_of(self, name: str) -> Path | None:
        """Return where a file is in a folder; None: this is a bucket. Raises StoreError."""
        try:
            with self._asking(name):
                return Path(self.storage.path(name))
        except NotImplementedError:
            return None

    def require_its_archives(self) -> None:
        """Raise StoreError where none of the newest archives is here that should be.

        A folder that is not mounted takes files as well, and loses them when it is.
        """
        placed = AuditArchive.objects.placed().filter(tier=self.tier, is_doubled=False)
        names = list(placed.order_by("-pk").values_list("name", flat=True)[:LOOKED_FOR])
        if names and not any(map(self.has, names)):
            missing = f"{self.alias} has none of its archives, as {names[0]}"
            raise StoreError(f"{missing}: is it mounted?")

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name; raise StoreError."""
        with self._asking(name):
            return bool(self.storage.exists(name))

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Let whatever a store raises be one kind of error."""
        try:
            yield
        except (StoreError, NotImplementedError):
            raise
        except Exception as error:
            raise StoreError(f"{name} in {self.alias}: {type(error).__name__}: {error}") from error

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file to read; raise StoreError where it cannot be."""
        with self._asking(name):
            opened = self.storage.open(name, "rb")
        with opened:
            yield Asking(opened, partial(self._asking, name)).begin()  # type: ignore[misc]  # it reads

    def hash_of(self, name: str) -> str:
        """Return the SHA-256 of a file."""
        with self.reading(name) as file:
            return _hash_of(file)

    def hash_at(self, path: Path) -> str:
        """Return the SHA-256 of a file beside its place."""
        with self._asking(path.name), path.open("rb") as file:
            return _hash_of(file)

    @contextmanager
    def drafting(self, name: str, *, token: str) -> Iterator[Draft]:
        """Write a file aside, which ``place`` then puts in its place; else it is removed.

        ``token`` tells the drafts of two writers of one name apart.
        """
        place = self.path_of(name)
        if place is None:
            with tempfile.NamedTemporaryFile("w+b", prefix="audit-") as spool:
                yield Draft(spool)
            return
        _make(place.parent)
        aside = place.with_name(f".{place.name}.{token}{ASIDE}")
        with aside.open("xb") as file:
            draft = Draft(file, aside)
            try:
                aside.chmod(0o640)
                yield draft
            finally:
                if not draft.is_noted:
                    with suppress(OSError):
                        aside.unlink()

    def place(self, draft: Draft, name: str) -> None:
        """Put a draft in its place and read it there; raise StoreError."""
        place = self.path_of(name)
        if place is not None and draft.path is not None:
            rename(draft.path, place)
        else:
            draft.file.seek(0)
            with self._asking(name):
                stored = self.storage.save(name, File(draft.file))
            if stored != name:
                self.storage.delete(stored)
                raise StoreError(f"the store called {name} {stored}: it must overwrite")
        if (found := self.hash_of(name)) != draft.sha256:
            raise StoreError(f"{name} reads otherwise than it was written: {found}")

    def copy_from(self, other: "Store", name: str, *, sha256_hex: str, token: str) -> None:
        """Copy a file from another store, verified on its way; raise StoreError."""
        with self.drafting(name, token=token) as draft:
            with other.reading(name) as source:
                shutil.copyfileobj(source, draft, CHUNK)
            if draft.sha256 != sha256_hex:
                raise StoreError(f"{name} is not what it was: {draft.sha256}")
            draft.read_back()
            self.place(draft, name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there; raise StoreError."""
        with self._asking(name):
            self.storage.delete(name)

    def names(self) -> Iterator[str]:
        """Yield the names of its files, whoever knows of them; raise StoreError.

        What is not called as archives are is left out: a store may hold other things, too.
        """
        for year in self._listed("", YEAR)[0]:
            for month in self._listed(year, MONTH)[0]:
                folder = f"{year}/{month}"
                yield from (f"{folder}/{it}" for it in self._listed(folder, FILE)[1])

    def _listed(self, folder: str, wanted: re.Pattern[str]) -> tuple[list[str], list[str]]:
        """Return the folders and files of a folder that are called so, in order."""
        with self._asking(folder or "all files"):
            try:
                folders, names = self.storage.listdir(folder)
            except FileNotFoundError:
                return [], []
            except NotImplementedError as error:
                raise StoreError("it has no lists of its files") from error
        found = [sorted(filter(wanted.fullmatch, some)) for some in (folders, names)]
        return found[0], found[1]

    def is_at(self, other: "Store", name: str) -> bool:
        """Tell whether what both call so is one file: a folder may be mounted twice."""
        place, elsewhere = self.path_of(name), other.path_of(name)
        if place is None or elsewhere is None:
            return False
        with self._asking(name):
            return place.exists() and elsewhere.exists() and place.samefile(elsewhere)

    def sweep(self, folder: str) -> int:
        """Remove what was abandoned aside in a folder; return how many files."""
        place = self.path_of(folder)
        if place is None or not place.is_dir():
            return 0
        swept = 0
        for path in place.glob(f".*{ASIDE}"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()
                    swept += 1
        return swept


def rename(aside: Path, place: Path) -> None:
    """Put a file in its place for good: also a power cut finds it there."""
    aside.replace(place)
    _flush(place.parent)


def _make(folder: Path) -> None:
    """Make a folder for good, with those above it."""
    missing = [it for it in (folder, *folder.parents) if not it.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    for made in missing:
        _flush(made.parent)


def _flush(folder: Path) -> None:
    """Write to the disk what is in a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _hash_of(file: IO[bytes]) -> str:
    found = sha256()
    while chunk := file.read(CHUNK):
        found.update(chunk)
    return found.hexdigest()
