"""The commands of docs/audit.md, typed as they stand on a real file, say what they promise."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from django.conf import settings

from recovery.models import AuditArchive, AuditSeal
from recovery.trail import keys
from tests.recovery.trail.records import ARCHIVE, path_of, ran, sealed

pytestmark = pytest.mark.django_db(transaction=True)

TEXT = (settings.BASE_DIR / "docs" / "audit.md").read_text()
NAME = "audit-2026-08-29-001-3f9c2a1b.jsonl.gz"


def commands() -> list[str]:
    """Return the commands of the section about sha256sum."""
    section = TEXT[TEXT.index("## With nothing but sha256sum") :]
    found = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert len(found) == 3
    return found


def typed(command: str, folder: Path) -> str:
    """Return the first word that a command prints."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=folder, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.split()[0]


@pytest.mark.parametrize("before", [0, 2])
def test_file_and_seal_are_verified_by_what_is_written_there(tmp_path, before):
    for _ in range(before):
        sealed(days_ago=50)
    first = sealed(3, days_ago=100, reason="木板 «quoted» \"'\\\n")
    sealed(2, days_ago=100)
    ran(ARCHIVE)
    archive = AuditArchive.objects.get()
    seal = AuditSeal.objects.get(spans__first_id=first[0])
    shutil.copy(path_of(archive), tmp_path / NAME)
    said = [typed(command, tmp_path) for command in commands()]
    assert said == [archive.sha256, seal.digest, seal.hash]


def test_signature_is_verified_by_openssl_and_the_key(tmp_path, settings):
    settings.AUDIT_SEAL_KEYS = ["k" * 40]
    sealed()
    seal = AuditSeal.objects.get()
    command = re.search(r"`(printf %s HASH \| openssl[^`]*)`", TEXT)[1]
    done = subprocess.run(
        ["sh", "-c", command.replace("HASH", seal.hash).replace("KEY", "k" * 40)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == seal.mac
    assert seal.key == next(iter(keys.all_keys()))


def test_findings_that_are_explained_are_those_there_are():
    source = (settings.BASE_DIR / "recovery" / "trail" / "verifying.py").read_text()
    there = set(re.findall(r'(?:find|Finding)\(\s*"([a-z-]+)"', source))
    table = TEXT[TEXT.index("| finding | means |") : TEXT.index("A million records")]
    assert set(re.findall(r"`([a-z-]+)`", table)) - {"auditSeal"} >= there
    assert there >= {"changed", "removed", "inserted", "unsealed", "unknown-key"}
