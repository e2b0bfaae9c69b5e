"""Certificates that tests make for themselves."""

import subprocess
from pathlib import Path


def make(folder: Path, host: str) -> None:
    """Write ``fullchain.pem`` and ``privkey.pem`` for ``host`` into ``folder``."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}",
         "-keyout", "privkey.pem", "-out", "fullchain.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
