"""Commands typed wrongly in the usual ways: one helpful line, status 2, nothing done."""

import pytest
from django.core.management import get_commands, load_command_class

from recovery import schedules
from recovery.models import AuditRecord, Plan

pytestmark = pytest.mark.django_db(transaction=True)

OURS = sorted(
    name for name, app in get_commands().items() if app in ("recovery", "ledger", "splits")
)
CASES = [
    (["after_restore", "SO-1"], "unrecognized arguments: SO-1"),
    (["after_restore", "--dryrun"], "did you mean --dry-run?"),
    (["audit"], "audit search"),
    (["audit", "bury"], "search|verify|archive"),
    (["audit", "search", "--since", "yesterday"], "give a time"),
    (["audit", "search", "--since", "1h", "--until", "2h"], "not before"),
    (["audit", "search", "--text", "x"], "--since 7d"),
    (["audit", "search", "--limit", "-1"], "--limit"),
    (["audit", "serach"], "did you mean search"),
    (["audit", "search", "--run", "7"], "--run"),
    (["audit", "verify", "--kept", "7"], "NUMBER:HASH"),
    (["audit", "restore"], "say which"),
    (["demo", "now"], "unrecognized arguments: now"),
    (["dlq", "bury"], "choose from"),
    (["dlq", "redrive", "--reason", "x"], "--all"),
    (["dlq", "redrive", "--all", "--code", "unbalanced", "--reason", "x"], "--all"),
    (["dlq", "redrive", "--all"], "--reason"),
    (["dlq", "redrive", "--code", "acount_closed"], "did you mean account_closed?"),
    (["dlq", "redrive", "--code", "unbalanced", "--reason", "  "], "--reason"),
    (["dlq", "redrive", "--id", "x"], "no number of a row"),
    (["dlq", "redrive", "--id", "9" * 20, "--reason", "x"], "no number of a row"),
    (["dlq", "redrive", "--id", "99", "--reason", "x"], "no entry 99"),
    (["dlq", "redrive", "--older-than", "soon"], "no age such as"),
    (["dlq", "redrive", "--all", "--rate", "0"], "rows a second"),
    (["dlq", "redrive", "--all", "--rate", "fast"], "rows a second"),
    (["dlq", "redrive", "--all", "--halt-share", "2"], "share from 0 to 1"),
    (["dlq", "discard", "--reason", "x"], "--all"),
    (["dlq", "restore", "--reason", "x"], "--all"),
    (["dlq", "restore", "--group", "abc", "--reason", "x"], "have no group"),
    (["dlq", "list", "--discarded", "--group", "abc"], "have no group"),
    (["dlq", "show"], "required: ID"),
    (["dlq", "show", "99"], "no entry 99"),
    (["dlq", "edit", "99"], "no entry 99"),
    (["drill"], "stuck"),
    (["drill", "stuk"], "stuck"),
    (["drill", "stuck", "--timeout", "soon"], "seconds"),
    (["finalize"], "--all-ready"),
    (["finalize", "SO-1", "--all-ready"], "--all-ready"),
    (["import_splits"], "required: FILE"),
    (["import_splits", "no-such.csv"], "cannot read no-such.csv"),
    (["import_splits", "."], "cannot read ."),
    (["jobs", "paus", "x"], "did you mean pause?"),
    (["jobs", "pause"], "say which job; there are: auditArchive"),
    (["jobs", "pause", "processledgeroutbox", "--reason", "x"], "processLedgerOutbox"),
    (["plans", "sho", "3"], "did you mean show?"),
    (["plans", "show"], "required: ID"),
    (["plans", "show", "99"], "no plan 99"),
    (["plans", "run", "99"], "no plan 99"),
    (["plans", "pause", "-1"], "ID"),
    (["plans", "cancel", "x"], "no number of a row"),
    (["plans", "create"], "required: ACTION"),
    (["plans", "create", "outbox.bury", "--all"], "outbox.redrive"),
    (["plans", "create", "outbox.redrive"], "--all"),
    (["plans", "create", "outbox.redrive", "77", "--reason", "x"], "nobody knows 77"),
    (["plans", "create", "outbox.redrive", "9" * 20, "--reason", "x"], "nobody knows"),
    (["plans", "create", "split.retry", "SO-9", "--reason", "x"], "nobody knows SO-9"),
    (["plans", "create", "outbox.redrive", "--all", "--set", "x"], "NAME=VALUE"),
    (["plans", "create", "outbox.redrive", "--all", "--set", "x=1", "--reason", "y"], "'x'"),
    (["qcluster", "--metricsport", "9"], "did you mean --metrics-port?"),
    (["qcluster", "--metrics-port", "http"], "--metrics-port"),
    (["reconcile", "SO-1"], "unrecognized arguments: SO-1"),
    (["recover_stuck", "--dryrun"], "did you mean --dry-run?"),
    (["recover_stuck", "--threshold"], "expected one argument"),
    (["recover_stuck", "--threshold", "5m"], "seconds"),
    (["recover_stuck", "--threshold=-1"], "seconds"),
    (["recover_stuck", "--force"], "--all"),
    (["recover_stuck", "--force", "SO-1", "--all"], "--all"),
    (["recover_stuck", "\udcff"], "not UTF-8"),
    (["plans", "create", "split.cancel", "\udcff", "--reason", "x"], "not UTF-8"),
    (["dlq", "discard", "--all", "--reason", "\udcff"], "not UTF-8"),
    (["run_job"], "required: name"),
    (["run_job", "processLedgerOutbx"], "processLedgerOutbox"),
    (["selfcheck", "processLedgerOutbx"], "processLedgerOutbox"),
    (["selfcheck", "--verbose"], "did you mean --verbosity?"),
]


def typed(capsys, name, *arguments):
    """Return the status and the lines on standard error, as of the command line."""
    with pytest.raises(SystemExit) as leaving:
        load_command_class(get_commands()[name], name).run_from_argv(
            ["manage.py", name, *arguments]
        )
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [it for it in captured.err.splitlines() if it.strip() and not it.startswith("{")]
    return leaving.value.code, lines


@pytest.mark.parametrize(("arguments", "says"), CASES, ids=[ascii(" ".join(it)) for it, _ in CASES])
def test_wrong_usage_is_one_helpful_line_and_status_2(capsys, arguments, says):
    schedules.mend()
    status, lines = typed(capsys, *arguments)
    assert (status, len(lines)) == (2, 1), lines
    assert says in lines[0]
    assert not Plan.objects.exists()
    assert not AuditRecord.objects.exists()


@pytest.mark.parametrize("name", OURS)
def test_each_command_refuses_an_option_it_does_not_know(capsys, name):
    status, (line,) = typed(capsys, name, "--frobnicate")
    assert status == 2
    assert f"manage.py {name} --help" in line or "required" in line


def test_each_command_is_typed_wrongly_here():
    assert {arguments[0] for arguments, _ in CASES} == set(OURS)


def test_command_that_is_not_there_is_wrong_usage_too(manage):
    for wrong, says in (("recover_stuk", "Did you mean recover_stuck?"), ("frobnicate", "help")):
        finished = manage(wrong)
        assert (finished.returncode, says in finished.stderr) == (2, True), finished
        assert "Traceback" not in finished.stderr
