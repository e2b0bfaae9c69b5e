"""Drills for tests: performed here, and what they leave behind."""

import io
import json

from django.core.management import call_command

from recovery.clock import db_now
from splits.audit import Author
from splits.drills import cleaning, performance, registry
from splits.drills.exercise import Exercise
from splits.drills.names import new_code
from splits.reconcile import Report, reconcile

AUTHOR = Author("cli:tester", reason="drill for a test")


def drill(*arguments):
    """Run the command here; return its status and its document."""
    out, status = io.StringIO(), 0
    try:
        call_command("drill", *arguments, "--json", stdout=out)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    return status, json.loads(out.getvalue())


def exercise(timeout_s=60.0):
    """Return a drill about to begin."""
    return Exercise("test", new_code(db_now()), AUTHOR, timeout_s, say=lambda _text: None)


def perform(play, it=None):
    """Perform ``play`` as a drill; return it and its ending."""
    it = it or exercise()
    case = registry.Case("test", play, jobs=(), steps=(), unfit=lambda: "")
    return it, performance.perform(case, it)


def assert_nothing_is_left(code=""):
    """Assert that everything is settled and agrees."""
    findings = []
    reconcile(Report(on_finding=findings.append))
    assert findings == []
    assert list(cleaning._unsettled()) == []
    assert not code or cleaning.left(code) == []
