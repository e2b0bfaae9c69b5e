"""docs/environment.md says what the settings ask for, all of it."""

import re
from pathlib import Path

import pytest
from django.conf import settings

from settings import reference

pytestmark = pytest.mark.once

ROOT = Path(settings.BASE_DIR)
READ = re.compile(r"""os\.environ(?:\.get|\.pop)?[\[(]"(\w+)\"""")
NAMED = re.compile(r'"((?:OTEL|WEB)_[A-Z_]+)"')


def test_reference_is_what_the_settings_say():
    assert reference.FILE.read_text() == reference.text(), "run: make reference"


def test_whatever_is_read_of_the_environment_is_in_the_reference():
    listed = set(re.findall(r"^\| `(\w+)`", reference.FILE.read_text(), re.MULTILINE))
    sources = [ROOT / "manage.py", ROOT / "deploy" / "gunicorn.conf.py"]
    for folder in ("settings", "recovery", "ledger", "splits"):
        sources += (ROOT / folder).rglob("*.py")
    read = {name for file in sources for name in READ.findall(file.read_text())}
    read |= {name for file in sources for name in NAMED.findall(file.read_text())}
    assert read
    assert read <= listed


def test_reference_knows_no_machine_and_no_secret():
    text = reference.FILE.read_text()
    assert str(ROOT) not in text
    assert not any(value in text for value in reference.PRODUCTION.values() if "://" in value)


def test_each_meaning_is_one_line():
    meanings = [it for group in reference.GROUPS.values() for it in group.values()]
    assert all(it and "\n" not in it and len(it) < 100 for it in meanings)


def test_variable_without_a_meaning_is_refused(monkeypatch):
    known = reference.asked() | {"JOB_OF_TOMORROW": ["a text", ""]}
    monkeypatch.setattr(reference, "asked", lambda: known)
    with pytest.raises(KeyError, match="JOB_OF_TOMORROW"):
        reference.text()
