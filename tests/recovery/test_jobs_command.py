"""``manage.py jobs``: state of every job; pause and resume."""

import json

import pytest
from django.core.management import CommandError, call_command

from recovery import leases, registry, runner, schedules
from recovery.models import AuditRecord, Job

pytestmark = pytest.mark.django_db(transaction=True)

OUTBOX = "processLedgerOutbox"
FACTS = {
    "job", "does", "period_s", "paused_at", "heartbeat_age_s", "lease_owner",
    "lease_expires_at", "fence", "next_run", "last_started_at", "last_finished_at",
    "last_status", "last_duration_s", "last_error",
}  # fmt: skip


def listed(capsys):
    call_command("jobs", "list", "--json")
    return {item["job"]: item for item in json.loads(capsys.readouterr().out)}


def test_every_job_is_listed_on_a_fresh_database(capsys):
    found = listed(capsys)
    assert sorted(found) == [job.name for job in registry.all_jobs()]
    fresh = found[OUTBOX]
    assert set(fresh) == FACTS
    assert (fresh["period_s"], fresh["fence"], fresh["last_status"]) == (10, 0, None)
    assert fresh["heartbeat_age_s"] is None
    assert fresh["does"] == "Post due outbox entries in batches."


def test_job_that_ran_shows_heartbeat_next_run_and_error(rung, capsys, monkeypatch):
    schedules.mend()

    def fail(_run):
        raise RuntimeError("no")

    job = registry.Job(OUTBOX, fail, "JOB_OUTBOX_PERIOD_SEC", "")
    monkeypatch.setitem(registry._jobs, OUTBOX, job)
    runner.run_job(OUTBOX)
    item = listed(capsys)[OUTBOX]
    assert 0 <= item["heartbeat_age_s"] < 60
    assert (item["last_status"], item["last_error"]) == ("failed", "RuntimeError: no")
    assert item["next_run"]
    assert (item["lease_owner"], item["lease_expires_at"]) == (None, None)


def test_holder_is_shown_while_its_lease_lasts(rung, capsys):
    leases.acquire(OUTBOX)
    assert listed(capsys)[OUTBOX]["lease_owner"].startswith(leases.HOST)
    Job.objects.update(lease_expires_at="2020-01-01T00:00:00Z")
    assert listed(capsys)[OUTBOX]["lease_owner"] is None


def test_people_get_a_line_a_job(capsys):
    call_command("jobs")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [job.name for job in registry.all_jobs()]
    assert all("never ran" in line and "no heartbeat" in line for line in lines)


def test_pause_and_resume_by_command(rung, capsys):
    call_command("jobs", "pause", OUTBOX, "--reason", "stocktaking", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "job": OUTBOX, "action": "pause", "changed": True,
    }  # fmt: skip
    assert listed(capsys)[OUTBOX]["paused_at"]
    call_command("jobs", "pause", OUTBOX)
    assert "nothing to do" in capsys.readouterr().out
    call_command("jobs", "resume", OUTBOX)
    assert capsys.readouterr().out == f"{OUTBOX}: running again\n"
    assert not listed(capsys)[OUTBOX]["paused_at"]
    records = AuditRecord.objects.order_by("id")
    assert [record.action for record in records] == ["job-paused", "job-resumed"]
    assert records[0].actor.startswith("cli:")
    assert records[0].reason == "stocktaking"


@pytest.mark.parametrize("arguments", [("pause",), ("pause", "nope"), ("list", OUTBOX)])
def test_wrong_usage_is_a_2(arguments):
    with pytest.raises(CommandError) as refused:
        call_command("jobs", *arguments)
    assert refused.value.returncode == 2


def test_in_a_process_of_its_own_json_is_all_there_is_on_standard_output(manage):
    done = manage("jobs", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.json()) == len(registry.all_jobs())
    assert manage("jobs", "pause", "nope").returncode == 2
