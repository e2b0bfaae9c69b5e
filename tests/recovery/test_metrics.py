"""Counters of runs and samples of gauges."""

import pytest
from django.db import OperationalError, connection, transaction
from prometheus_client import REGISTRY

from recovery import link, metrics, registry, runner
from recovery.models import Job, JobRun, Sample
from recovery.registry import Batch
from tests.recovery.engine import NAME, register

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def gauges(monkeypatch):
    """Return an empty registry of gauges."""
    monkeypatch.setattr(metrics, "_gauges", {})
    return metrics._gauges


def counted(metric, **labels):
    return REGISTRY.get_sample_value(metric, {"job": NAME, **labels}) or 0.0


def samples():
    return {(row.name, row.labels): row.value for row in Sample.objects.all()}


def test_run_is_counted_and_timed(rung, monkeypatch):
    register(monkeypatch)
    metrics_of_runs = ("job_runs_total", "job_duration_seconds_count", "job_failures_total")
    runs, durations, failures = map(counted, metrics_of_runs)
    runner.run_job(NAME)
    assert tuple(map(counted, metrics_of_runs)) == (runs + 1, durations + 1, failures)


def test_skip_is_counted_by_reason(no_redis, monkeypatch):
    register(monkeypatch)
    Job.objects.filter(name=NAME).pause()
    before = counted("job_skipped_total", reason="paused")
    runner.run_job(NAME)
    assert counted("job_skipped_total", reason="paused") == before + 1


def test_switched_off_nothing_is_recorded(no_redis, monkeypatch, settings):
    settings.METRICS_ENABLED = False
    register(monkeypatch)
    before = counted("job_runs_total")
    runner.run_job(NAME)
    assert counted("job_runs_total") == before
    assert runner.run_job("metricsCollect").result == {}
    assert not Sample.objects.exists()


def test_samples_replace_those_before_and_drop_those_gone(gauges):
    values = {"a": 1.0, "b": 2.0}

    @metrics.gauge("things")
    def things():
        """How many things there are."""
        return [({"kind": kind}, value) for kind, value in values.items()]

    metrics.store(metrics.collect())
    first = Sample.objects.order_by("at").first().at
    values.pop("b")
    values.update(a=3.0, c=4.0)
    assert metrics.store(metrics.collect()) == 2
    assert samples() == {("things", '{"kind": "a"}'): 3.0, ("things", '{"kind": "c"}'): 4.0}
    assert all(row.at >= first for row in Sample.objects.all())
    assert metrics.all_gauges()[0].summary == "How many things there are."


def test_labels_compare_byte_for_byte(gauges):
    metrics.gauge("things")(lambda: [({"sku": "a1"}, 1.0), ({"sku": "A1"}, 2.0)])
    metrics.store(metrics.collect())
    metrics.store(metrics.collect())
    assert sorted(samples().values()) == [1.0, 2.0]


def test_collecting_job_stores_a_sample_of_each_gauge(no_redis):
    outcome = runner.run_job("metricsCollect")
    assert outcome.result["samples"] == Sample.objects.count() > 0


def test_degraded_lock_is_a_gauge(redis_up):
    assert metrics.job_lock_degraded() == [({}, 0.0)]
    redis_up.kill()
    with pytest.raises(link.RedisDownError):
        link.call(lambda client: client.ping())
    assert metrics.job_lock_degraded() == [({}, 1.0)]


def test_embedded_mode_is_not_degraded(no_redis):
    assert metrics.job_lock_degraded() == [({}, 0.0)]


def test_lost_lease_stores_no_samples(no_redis, monkeypatch):
    collect = metrics.collect

    def lose_lease():
        Job.objects.filter(name="metricsCollect").update(fence=99)
        return collect()

    monkeypatch.setattr(metrics, "collect", lose_lease)
    assert runner.run_job("metricsCollect").status == "failed"
    assert not Sample.objects.exists()
    assert not connection.in_atomic_block


def test_batch_without_counts_is_an_idle_run(no_redis, monkeypatch, caplog):
    caplog.set_level("INFO")
    register(monkeypatch, lambda _run: Batch())
    runner.run_job(NAME)
    assert [r.getMessage() for r in caplog.records] == []


def totals():
    """Return runs, failures and timed runs of the test's job."""
    names = ("job_runs_total", "job_failures_total", "job_duration_seconds_count")
    return [counted(name) for name in names]


def grown(before):
    return [now - then for now, then in zip(totals(), before, strict=True)]


def die(*, times=1):
    """Let runs begin that never end."""
    for _ in range(times):
        runner.begin(registry.get(NAME))
        Job.objects.filter(name=NAME).update(lease_owner="", lease_expires_at=None)


def test_runs_that_died_are_counted_as_failed_once_they_are_found(no_redis, monkeypatch):
    register(monkeypatch)
    before = totals()
    die(times=2)
    assert grown(before) == [1, 1, 0], "the second has found the first"
    runner.run_job(NAME)
    runner.run_job(NAME)
    assert grown(before) == [4, 2, 2]


def test_burial_that_is_rolled_back_counts_nobody(no_redis, monkeypatch):
    register(monkeypatch)
    die()
    before = totals()
    with transaction.atomic():
        runner.begin(registry.get(NAME))
        transaction.set_rollback(True)
    assert grown(before) == [0, 0, 0]
    runner.run_job(NAME)
    assert grown(before) == [2, 1, 1]


def test_run_that_was_taken_for_dead_and_ends_after_all_is_counted_once(no_redis, monkeypatch):
    def overtaken(_run):
        Job.objects.filter(name=NAME).update(lease_owner="", lease_expires_at=None)
        die()
        return Batch()

    register(monkeypatch, overtaken)
    before = totals()
    runner.run_job(NAME)
    assert JobRun.objects.filter(status="died").count() == 1
    assert grown(before) == [1, 1, 0]


def test_run_that_could_not_be_recorded_is_counted_by_who_finds_it_dead(no_redis, monkeypatch):
    register(monkeypatch)
    before = totals()
    with monkeypatch.context() as patch:
        patch.setattr(JobRun.objects.all().__class__, "finish", lost)
        runner.run_job(NAME)
    assert grown(before) == [0, 0, 0]
    Job.objects.filter(name=NAME).update(lease_owner="", lease_expires_at=None)
    runner.run_job(NAME)
    assert grown(before) == [2, 1, 1]


def lost(*_args, **_kwargs):
    raise OperationalError(2006, "Server has gone away")


def test_end_that_is_recorded_twice_is_an_end(no_redis, monkeypatch):
    register(monkeypatch)
    runner.run_job(NAME)
    (run,) = JobRun.objects.filter(job_id=NAME)
    this = JobRun.objects.filter(pk=run.pk)
    assert this.finish(status="ok", counts={}, error="")
    assert not this.finish(status="failed", counts={}, error="")
    assert JobRun.objects.get(pk=run.pk).status == "ok"
