"""System checks: each finding, and its absence."""

from collections.abc import Iterator

import pytest
from django.core.checks import CheckMessage
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection

from recovery import checks, registry


def ids(found: list[CheckMessage]) -> list[str | None]:
    assert all(message.hint for message in found)
    return [message.id for message in found]


def queue(settings, **changes: int) -> list[str | None]:
    settings.Q_CLUSTER = settings.Q_CLUSTER | changes
    return ids(checks.check_queue(None))


def test_configuration_of_the_tests_is_sound():
    assert checks.check_queue(None) == []
    assert checks.check_settings(None) == []
    assert checks.check_faultpoints(None) == []


@pytest.mark.parametrize(
    ("retry", "found"), [(89, ["recovery.E001"]), (90, ["recovery.E001"]), (91, [])]
)
def test_tasks_must_not_be_retried_while_they_run(settings, retry, found):
    assert queue(settings, timeout=90, retry=retry) == found


@pytest.mark.parametrize(("timeout", "found"), [(35, ["recovery.E002"]), (36, [])])
def test_tasks_must_not_be_killed_within_their_time_budget(settings, timeout, found):
    settings.JOB_TIME_BUDGET_SEC, settings.JOB_LOCK_TTL_SEC = 20, 15
    assert queue(settings, timeout=timeout, retry=1_000) == found


def test_every_job_needs_a_worker(settings):
    jobs = len(registry.all_jobs())
    assert queue(settings, workers=jobs) == []
    assert queue(settings, workers=jobs - 1) == ["recovery.E003"]


@pytest.mark.parametrize(("threshold", "found"), [(35, ["recovery.W001"]), (36, [])])
def test_threshold_must_be_longer_than_a_step_may_take(settings, threshold, found):
    settings.SPLIT_COMPLETION_TIMEOUT_SEC, settings.JOB_LOCK_TTL_SEC = 5, 15
    settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC = threshold
    assert ids(checks.check_settings(None)) == found


@pytest.mark.parametrize(("timeout", "found"), [(15, ["recovery.E004"]), (14.9, [])])
def test_slow_endpoint_must_not_cost_the_lease(settings, timeout, found):
    settings.SPLIT_COMPLETION_TIMEOUT_SEC, settings.JOB_LOCK_TTL_SEC = timeout, 15
    assert ids(checks.check_settings(None)) == found


def test_our_qcluster_must_win(settings):
    settings.INSTALLED_APPS = ["django_q", "recovery"]
    assert ids(checks.check_settings(None)) == ["recovery.E005"]


def test_fault_points_are_told(settings):
    settings.RECOVERY_FAULTPOINTS = "lease.acquired=crash"
    assert ids(checks.check_faultpoints(None)) == ["recovery.W002"]


def test_findings_stop_a_command(settings):
    settings.Q_CLUSTER = settings.Q_CLUSTER | {"retry": 1}
    with pytest.raises(SystemCheckError, match=r"recovery\.E001"):
        call_command("check")


@pytest.fixture
def session(transactional_db: None) -> Iterator[None]:
    """Let a test spoil the session of its connection."""
    yield
    connection.close()


@pytest.mark.django_db
def test_session_of_the_tests_is_sound():
    assert checks.check_database(None, ["default"]) == []


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", ["recovery.E006"]),
        ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", ["recovery.E006"]),
        ("SET time_zone = '+08:00'", ["recovery.E007"]),
        ("SET time_zone = SYSTEM", ["recovery.E007"]),
        ("SET NAMES latin1", ["recovery.E008"]),
        ("SET NAMES utf8mb3", ["recovery.E008"]),
    ],
)
def test_unsound_session_is_found(session, statement, found):
    with connection.cursor() as cursor:
        cursor.execute(statement)
    assert ids(checks.check_database(None, ["default"])) == found
