"""Lanes: several runs of one job at once, each under its own lock; everything else is the job's."""

import json

import pytest
from django.conf import settings as configured
from django.core.management import call_command
from django_q.models import Schedule
from prometheus_client import REGISTRY

from recovery import pauses, registry, restoring, runner, schedules, states
from recovery.clock import seconds_from_now
from recovery.models import AuditRecord, Job, JobRun
from recovery.probing import probe_connection
from recovery.registry import Batch, UnknownJobError
from recovery.runner import run_job
from tests.logs import kept, named
from tests.recovery.engine import NAME, client, register, row

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = f"{NAME}:2"


@pytest.fixture
def lanes(monkeypatch, settings):
    """Return what registers the test's job with so many lanes."""

    def make(count, work=lambda _run: Batch()):
        settings.TEST_LANES = count
        monkeypatch.setattr(registry, "_jobs", dict(registry._jobs))
        register(monkeypatch, work)
        job = registry.Job(NAME, work, "JOB_OUTBOX_PERIOD_SEC", "test", "TEST_LANES")
        monkeypatch.setitem(registry._jobs, NAME, job)

    return make


def test_lanes_are_jobs_of_their_own_as_many_as_the_setting_says(lanes):
    lanes(3)
    names = [job.name for job in registry.all_jobs() if job.base == NAME]
    assert names == [NAME, SECOND, f"{NAME}:3"]
    assert registry.get(SECOND).period_s == 10
    with pytest.raises(UnknownJobError, match=f"{NAME}, {SECOND}, {NAME}:3"):
        registry.get(f"{NAME}:4")


def test_job_of_one_lane_has_no_other(lanes):
    lanes(1)
    for name in (SECOND, f"{NAME}:1", f"{NAME}:x", "processLedgerOutbox:2"):
        with pytest.raises(UnknownJobError):
            registry.get(name)
    assert registry.lane_behind(registry.get(NAME)) is None


def test_lane_behind_is_the_next_one_and_the_last_has_none(lanes):
    lanes(2)
    assert registry.lane_behind(registry.get(NAME)).name == SECOND
    assert registry.lane_behind(registry.get(SECOND)) is None


def test_lanes_run_at_once_and_each_keeps_its_own_second_run_out(lanes):
    seen = []

    def work(run):
        if run.job.name == NAME:
            seen.append(run_job(SECOND).status)
            seen.append(run_job(NAME).reason)
        return Batch({"worked": 1})

    lanes(2, work)
    assert run_job(NAME).status == "ok"
    assert seen == ["ok", "locked"]
    assert [row(name).last_status for name in (NAME, SECOND)] == ["ok", "ok"]
    assert set(JobRun.objects.values_list("job_id", flat=True)) == {NAME, SECOND}


@pytest.mark.redis
def test_each_lane_has_its_own_keys_in_redis(lanes):
    found = {}

    def work(run):
        keys = [f"lock:job:{run.job.name}", f"job:heartbeat:{run.job.name}"]
        found[run.job.name] = [client().get(key) is not None for key in keys]
        return Batch()

    lanes(2, work)
    run_job(NAME)
    run_job(SECOND)
    assert found == {NAME: [True, True], SECOND: [True, True]}
    assert json.loads(client().get(f"job:heartbeat:{SECOND}"))["job"] == SECOND


def test_pause_and_resume_of_a_job_are_those_of_its_lanes_on_one_record_each(lanes):
    lanes(2)
    schedules.ensure_rows()
    assert pauses.pause(NAME, actor="cli:tester", reason="stocktaking")
    assert [run_job(name).reason for name in (NAME, SECOND)] == ["paused", "paused"]
    assert not pauses.pause(NAME, actor="cli:tester")
    assert pauses.resume(NAME, actor="cli:tester")
    assert [run_job(name).status for name in (NAME, SECOND)] == ["ok", "ok"]
    records = AuditRecord.objects.order_by("id").values_list("action", "target_id", "reason")
    assert list(records) == [("job-paused", NAME, "stocktaking"), ("job-resumed", NAME, "")]


def test_lane_can_be_paused_alone(lanes):
    lanes(2)
    schedules.ensure_rows()
    assert pauses.pause(SECOND, actor="cli:tester")
    assert [run_job(name).status for name in (NAME, SECOND)] == ["ok", "skipped"]


@pytest.mark.parametrize("made_by", ["the schedules", "its first run"])
def test_lane_that_comes_while_its_job_is_paused_is_paused(lanes, made_by):
    lanes(1)
    pauses.pause(NAME, actor="cli:tester")
    lanes(2)
    if made_by == "the schedules":
        schedules.ensure_rows()
        assert row(SECOND).paused_at == row(NAME).paused_at
    assert run_job(SECOND).reason == "paused"


def test_probe_knows_lanes_of_a_paused_job_as_paused(lanes):
    lanes(2)
    schedules.ensure_rows()
    pauses.pause(NAME, actor="cli:tester")
    with probe_connection() as probe:
        ages = states.heartbeat_ages(probe)
    assert [ages[name][1] for name in (NAME, SECOND)] == [True, True]


def test_each_lane_has_its_tick(lanes):
    lanes(2)
    schedules.mend()
    ticks = Schedule.objects.filter(name__startswith=NAME).order_by("name")
    wanted = [(name, f"('{name}',)") for name in (NAME, SECOND)]
    assert list(ticks.values_list("name", "args")) == wanted
    lanes(1)
    schedules.mend()
    assert [it.name for it in Schedule.objects.filter(name__startswith=NAME)] == [NAME]


def test_runs_of_all_lanes_are_counted_and_logged_under_the_jobs_name(lanes):
    def runs():
        return REGISTRY.get_sample_value("job_runs_total", {"job": NAME}) or 0

    lanes(2, lambda _run: Batch({"worked": 1}))
    before = runs()
    with kept() as lines:
        run_job(SECOND)
    run_job(NAME)
    assert runs() == before + 2
    assert REGISTRY.get_sample_value("job_runs_total", {"job": SECOND}) is None
    said = named(lines, "run_finished")
    assert (said["job"], said["lane"]) == (NAME, SECOND)


def test_actor_of_a_lane_is_the_job(lanes):
    actors = []

    def work(run):
        actors.append(run.actor)
        return Batch()

    lanes(2, work)
    run_job(SECOND)
    assert actors == [f"system:{NAME}"]


def test_command_runs_and_lists_lanes(lanes, capsys):
    lanes(2)
    call_command("run_job", SECOND, "--json")
    assert json.loads(capsys.readouterr().out)["status"] == "ok"
    call_command("jobs", "--json")
    assert SECOND in [it["job"] for it in json.loads(capsys.readouterr().out)]


def test_every_lane_has_a_worker_by_default():
    assert configured.Q_CLUSTER["workers"] >= len(registry.all_jobs())


def test_family_of_a_job_is_not_that_of_one_with_a_longer_name():
    Job.objects.make([NAME, SECOND, f"{NAME}X", f"{NAME}X:2"])
    names = Job.objects.family(NAME).order_by("name").values_list("name", flat=True)
    assert list(names) == [NAME, SECOND]


def test_lane_that_only_other_hosts_have_is_skipped_and_counted(lanes):
    def skipped():
        labels = {"job": NAME, "reason": "no_lane"}
        return REGISTRY.get_sample_value("job_skipped_total", labels) or 0

    lanes(1)
    before = skipped()
    assert runner.run_task(SECOND)["status"] == "skipped"
    assert skipped() == before + 1
    with pytest.raises(UnknownJobError):
        run_job("nope:2")


def test_host_with_fewer_lanes_leaves_the_ticks_of_others_alone_while_they_beat(lanes):
    lanes(2)
    schedules.mend()
    run_job(SECOND)
    lanes(1)
    schedules.mend()
    assert Schedule.objects.filter(name=SECOND).exists()
    Job.objects.filter(name=SECOND).update(heartbeat_at=seconds_from_now(-schedules.LANE_GONE_S))
    schedules.mend()
    assert not Schedule.objects.filter(name=SECOND).exists()


def test_lane_that_was_resumed_alone_is_paused_after_a_restore(lanes):
    lanes(2)
    schedules.ensure_rows()
    pauses.pause(NAME, actor="cli:tester")
    pauses.resume(SECOND, actor="cli:tester")
    assert NAME in restoring.running_jobs()
    assert NAME in restoring.pause_jobs(actor="cli:tester", reason="restored")
    assert run_job(SECOND).reason == "paused"
