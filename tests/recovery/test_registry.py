"""The registry: the contract's names, found by autodiscovery, each once."""

import importlib

import pytest

from recovery import registry
from recovery.registry import Batch, DuplicateJobError, UnknownJobError


@pytest.fixture(autouse=True)
def jobs(monkeypatch):
    monkeypatch.setattr(registry, "_jobs", dict(registry._jobs))


def work(_run):
    """Do something.

    At length.
    """
    return Batch()


@pytest.mark.parametrize(
    ("name", "period_s"),
    [
        ("processLedgerOutbox", 10),
        ("finalizeRetryWorker", 30),
        ("recoverFinalizeStuck", 60),
        ("metricsCollect", 15),
        ("auditArchive", 86_400),
    ],
)
def test_jobs_of_the_contract_are_found_with_their_default_periods(name, period_s):
    assert registry.get(name).period_s == period_s


def test_period_is_read_from_the_settings(settings):
    settings.JOB_OUTBOX_PERIOD_SEC = 20
    assert registry.get("processLedgerOutbox").period_s == 20


def test_new_job_is_one_function():
    registry.job("newJob", period_setting="JOB_STUCK_PERIOD_SEC")(work)
    job = registry.get("newJob")
    assert (job.work, job.period_s, job.summary) == (work, 60, "Do something.")
    assert job in registry.all_jobs()


def test_two_functions_cannot_share_a_name():
    registry.job("newJob", period_setting="JOB_STUCK_PERIOD_SEC")(work)
    with pytest.raises(DuplicateJobError, match="newJob"):
        registry.job("newJob", period_setting="JOB_STUCK_PERIOD_SEC")(lambda _run: Batch())


def test_module_that_is_loaded_twice_registers_once():
    from ledger import jobs

    before = [job.name for job in registry.all_jobs()]
    importlib.reload(jobs)
    assert [job.name for job in registry.all_jobs()] == before


def test_unknown_job_names_those_there_are():
    with pytest.raises(UnknownJobError, match="processLedgerOutbox"):
        registry.get("nope")


def test_jobs_come_by_name():
    names = [job.name for job in registry.all_jobs()]
    assert names == sorted(names)
