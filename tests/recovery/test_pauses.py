"""Pausing: the row is the only truth; ticks, wake-ups and run_job obey it."""

import pytest

from recovery import pauses, runner, wakeups
from recovery.models import AuditRecord, JobRun
from tests.recovery.engine import NAME, register, row

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def job(monkeypatch):
    return register(monkeypatch)


def records():
    rows = AuditRecord.objects.order_by("id")
    return list(rows.values_list("action", "actor", "target_type", "target_id", "reason"))


def test_pause_and_resume_are_on_the_record(rung):
    assert pauses.pause(NAME, actor="cli:ann", reason="stocktaking")
    assert row().paused_at
    assert pauses.resume(NAME, actor="cli:bob", reason="done")
    assert row().paused_at is None
    assert records() == [
        ("job-paused", "cli:ann", "job", NAME, "stocktaking"),
        ("job-resumed", "cli:bob", "job", NAME, "done"),
    ]
    paused = AuditRecord.objects.order_by("id").first()
    assert (paused.before, paused.after) == ({"state": "running"}, {"state": "paused"})


def test_pausing_twice_is_one_pause(rung):
    assert pauses.pause(NAME, actor="cli:ann")
    since = row().paused_at
    assert not pauses.pause(NAME, actor="cli:bob")
    assert row().paused_at == since
    assert len(records()) == 1


def test_resuming_what_runs_records_nothing(rung):
    assert not pauses.resume(NAME, actor="cli:ann")
    assert records() == []


def test_no_record_no_pause(rung, monkeypatch):
    def refuse(**_kwargs):
        raise RuntimeError("the audit table is gone")

    monkeypatch.setattr(pauses.audit, "record", refuse)
    with pytest.raises(RuntimeError):
        pauses.pause(NAME, actor="cli:ann")
    assert row().paused_at is None


def test_paused_job_is_passed_by_ticks_and_wake_ups(rung):
    pauses.pause(NAME, actor="cli:ann")
    wakeups.wake(NAME)
    assert runner.run_task(NAME)["reason"] == "paused"
    assert not JobRun.objects.exists()


def test_run_under_way_ends_though_its_job_is_paused(rung, monkeypatch):
    def work(run):
        pauses.pause(NAME, actor="cli:ann")
        run.renew_lease()
        return runner.registry.Batch()

    register(monkeypatch, work)
    assert runner.run_job(NAME).status == "ok"
    assert runner.run_job(NAME).reason == "paused"
