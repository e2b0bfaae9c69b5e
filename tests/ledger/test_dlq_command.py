"""``manage.py dlq`` and ``plans``: what they take, report, refuse; and a carrier that is killed."""

import io
import json

import pytest
from django.core.management import CommandError, call_command

from ledger.models import EntryStatus, OutboxEntry
from recovery import foreground, plans
from recovery.clock import db_now, seconds_from_now
from recovery.models import AuditRecord, ItemStatus, Plan, PlanStatus
from tests.ledger.entries import drain, let_go, state
from tests.ledger.test_plans import die, payload, reopen

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _quick(settings, monkeypatch):
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 3
    monkeypatch.setattr(foreground, "NUDGE_AFTER_S", 0.0)


def run(*arguments: str) -> tuple[int, dict]:
    out, status = io.StringIO(), 0
    try:
        call_command(*arguments, "--json", stdout=out)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    return status, json.loads(out.getvalue())


def text(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_list_shows_causes():
    die(3)
    status, document = run("dlq", "list")
    assert (status, document["entries"]) == (0, 3)
    (group,) = document["groups"]
    assert (group["code"], group["pattern"]) == (
        "account_closed",
        "account stock:* [m<n>] is closed",
    )
    assert "3 dead entries, 1 causes" in text("dlq")
    assert "OAK-1" in text("dlq", "list", "--entries")


def test_one_group_is_redriven_and_the_others_are_left():
    entries = die(3)
    (other,) = die(sku="PINE")
    group = run("dlq", "list")[1]["groups"][0]["group"]
    OutboxEntry.objects.filter(pk=other.pk).update(last_error="something else")
    reopen()
    other.letter.delete()
    status, document = run("dlq", "redrive", "--group", group, "--reason", "account opened")
    assert (status, document["status"], document["counts"]) == (0, "done", {"applied": 3})
    assert state(other)[0] == EntryStatus.DEAD
    drain()
    assert {state(it)[0] for it in entries} == {EntryStatus.POSTED}


def test_canary_that_fails_exits_1_and_resumed_plan_exits_0():
    entries = die(12)
    status, document = run("dlq", "redrive", "--all", "--canary", "--reason", "try")
    assert (status, document["status"]) == (1, "halted")
    assert [it["name"] for it in document["undone"]] == [entries[0].event_key]
    reopen()
    status, document = run("plans", "run", str(document["plan"]))
    assert (status, document["counts"]) == (0, {"done": 12})


def test_plan_without_canary_shows_how_its_rows_fared_since():
    good, bad = die(2)
    status, document = run("dlq", "redrive", "--all", "--reason", "x")
    assert (status, document["counts"], document["by_now"]) == (0, {"applied": 2}, {"unknown": 2})
    OutboxEntry.objects.filter(pk=bad.pk).update(next_attempt_at=seconds_from_now(3_600))
    reopen()
    drain()
    OutboxEntry.objects.filter(pk=bad.pk).update(
        attempts=1, last_error_code="unbalanced", last_error="no"
    )
    number = str(document["plan"])
    document = run("plans", "show", number)[1]
    assert document["by_now"] == {"good": 1, "bad": 1}
    assert document["failed_again"] == [
        {"id": bad.pk, "name": bad.event_key, "why": "unbalanced: no"}
    ]
    assert state(good)[0] == EntryStatus.POSTED
    assert "of those applied, by now: 1 well, 1 failed again" in text("plans", "show", number)


def test_dry_run_writes_nothing_but_an_audit_line():
    die(2)
    before = AuditRecord.objects.count()
    status, document = run("dlq", "redrive", "--all", "--dry-run")
    assert (status, document["rows"], len(document["preview"])) == (0, 2, 2)
    assert document["preview"][0]["after"]["status"] == "pending"
    assert not Plan.objects.exists()
    assert OutboxEntry.objects.dead().count() == 2
    record = AuditRecord.objects.first()
    assert (record.action, record.evidence["rows"]) == (plans.PREVIEWED, 2)
    assert AuditRecord.objects.count() == before + 1


def test_edit_takes_a_file(settings, tmp_path):
    settings.DLQ_EDIT_ENABLED = True
    (entry,) = die()
    file = tmp_path / "payload.json"
    file.write_text(json.dumps(payload()))
    arguments = ["dlq", "edit", str(entry.pk), "--payload", str(file), "--reason", "typo"]
    assert "+" in text(*arguments, "--dry-run")
    assert run(*arguments)[0] == 0
    drain()
    assert state(entry)[0] == EntryStatus.POSTED
    file.write_text("{")
    with pytest.raises(CommandError, match="not JSON") as caught:
        run(*arguments)
    assert caught.value.returncode == 2


def test_discarded_entries_are_listed_and_restored_by_filter():
    mistaken, meant = die(2)
    run("dlq", "discard", "--all", "--reason", "oops")
    listed = run("dlq", "list", "--discarded")[1]["entries"]
    assert [it["id"] for it in listed] == [mistaken.pk, meant.pk]
    assert run("dlq", "restore", "--code", "unbalanced", "--reason", "x")[1]["rows"] == 0
    arguments = ["dlq", "restore", "--id", str(mistaken.pk), "--reason", "by mistake"]
    assert run(*arguments, "--dry-run")[1]["preview"][0]["after"]["status"] == "dead"
    assert run(*arguments)[0] == 0
    assert (state(mistaken)[0], state(meant)[0]) == (EntryStatus.DEAD, EntryStatus.DISCARDED)
    assert run("dlq", "restore", "--all", "--reason", "all of it")[1]["done"] == 1
    assert OutboxEntry.objects.dead().count() == 2


def test_plans_are_listed_paused_and_cancelled():
    (entry,) = die()
    status, document = run(
        "plans", "create", "outbox.discard", str(entry.pk), "--reason", "x", "--no-start"
    )
    assert (status, document["status"]) == (0, "planned")
    number = str(document["plan"])
    assert run("plans", "list")[1]["plans"][0]["plan"] == document["plan"]
    assert run("plans", "pause", number)[0] == 1, "it does not run"
    assert run("plans", "cancel", number)[1]["status"] == "cancelled"
    assert "outbox.discard" in text("plans", "actions")
    assert state(entry)[0] == EntryStatus.DEAD


@pytest.mark.parametrize("point", ["plan.before_item=crash@4", "plan.after_item=crash@4"])
def test_killed_carrier_is_carried_on_and_no_row_is_done_twice(manage, point):
    entries = die(10)
    reopen()
    killed = manage("dlq", "redrive", "--all", "--reason", "x", env={"RECOVERY_FAULTPOINTS": point})
    assert killed.returncode == -9
    let_go()
    plan = Plan.objects.get()
    assert (plan.status, plan.rows_done) == (PlanStatus.RUNNING, 3 + point.startswith("plan.a"))
    Plan.objects.update(carrier_until=db_now())  # what its time to live brings about
    assert manage("run_job", plans.JOB, "--json").json()["status"] == "ok"
    plan.refresh_from_db()
    assert plan.status == PlanStatus.DONE
    redriven = AuditRecord.objects.filter(action="outbox-entry-redriven")
    assert sorted(redriven.values_list("target_id", flat=True)) == sorted(
        str(it.pk) for it in entries
    )
    assert not plan.items.filter(status=ItemStatus.WAITING).exists()
