"""Keep results of any number on disk, and stream them into one JSON document."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self


class Spool:
    """A list of JSON values in a temporary file."""

    def __init__(self) -> None:
        """Open the file; it is removed when closed."""
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by exit
        self.count = 0

    def __enter__(self) -> Self:
        """Hand the open spool over."""
        return self

    def __exit__(self, *_exc_info: object) -> None:
        """Close and remove the file."""
        self._file.close()

    def add(self, value: Mapping[str, Any]) -> None:
        """Append one value."""
        self._file.write(json.dumps(value, ensure_ascii=True, default=str) + "\n")
        self.count += 1

    def write_document(
        self, write: Callable[[str], Any], document: Mapping[str, Any], *, key: str
    ) -> None:
        """Write ``document`` piece by piece, with the list under ``key`` as its last member."""
        head = json.dumps(document, ensure_ascii=False, default=str).removesuffix("}")
        write(f"{head}{', ' if document else ''}{json.dumps(key)}: [")
        for text in self._texts():
            write(text)
        write("]}\n")

    def _texts(self) -> Iterator[str]:
        self._file.seek(0)
        for number, line in enumerate(self._file):
            yield (", " if number else "") + line.rstrip("\n")
