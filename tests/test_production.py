"""docs/production.md speaks of settings, checks, commands, tests and headings that there are."""

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import get_commands

ROOT = Path(settings.BASE_DIR)
DOCS = ROOT / "docs"
TEXT = (DOCS / "production.md").read_text()
ENVIRONMENT = (DOCS / "environment.md").read_text()
PREFIXES = "JOB|OUTBOX|SESSION|SECRET|DATABASE|REDIS|METRICS|PROMETHEUS|QCLUSTER|PROXY|LOG|VAR"
KEYS = rf"`((?:{PREFIXES})_\w+)"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", it).lower().replace(" ", "-") for it in headings}


def test_settings_are_in_the_reference():
    named = set(re.findall(KEYS, TEXT))
    assert len(named) > 15
    assert [key for key in named if f"| `{key}` |" not in ENVIRONMENT] == []


def test_checks_and_commands_exist():
    runbook = (DOCS / "runbook.md").read_text()
    checks = set(re.findall(r"recovery\.[EW]\d{3}", TEXT))
    assert len(checks) > 2
    assert [it for it in checks if f"| `{it}` |" not in runbook] == []
    assert set(re.findall(r"manage\.py (\w+)", TEXT)) <= {*get_commands(), "dbshell"}


@pytest.mark.parametrize("page", sorted(set(re.findall(r"\]\((\w+\.md)", TEXT))))
def test_links_lead_somewhere(page):
    wanted = set(re.findall(rf"\]\({re.escape(page)}#([\w-]+)\)", TEXT))
    assert wanted <= anchors(DOCS / page)


def test_tests_that_prove_it_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)`", TEXT)
    assert len(named) >= 2
    assert [it for it in named if not (ROOT / it).exists()] == []


def test_events_are_logged():
    code = "".join(it.read_text() for it in (ROOT / "recovery").rglob("*.py"))
    for event in (
        "clock_off",
        "job_left_to_newer_code",
        "plan_left_to_newer_code",
        "migrations_awaited",
    ):
        assert f"`{event}`" in TEXT
        assert f'"{event}"' in code
