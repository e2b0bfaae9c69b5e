"""What ``selfcheck`` finds around the jobs: each examination is provoked, and silent otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.core import checks
from django.db import connection, models
from django_q.models import Schedule

from ledger.models import Account, OutboxEntry
from recovery import leases, pauses, registry, runner, schedules
from recovery.clock import db_now
from recovery.models import AuditRecord, Job, Sample
from recovery.registry import Batch
from recovery.selfcheck import engine, findings, schema, system
from recovery.selfcheck.findings import Finding, Severity, examine_all, in_order, some
from splits.models import SplitOrder
from tests.recovery.engine import NAME, client, expire, register
from tests.recovery.test_probes import closed_port

pytestmark = pytest.mark.django_db(transaction=True)

OUTBOX = "processLedgerOutbox"


@pytest.fixture(autouse=True)
def jobs():
    schedules.mend()


def only(found: Any) -> Finding:
    (finding,) = found
    assert finding.remedy
    return finding


def ids(found: Any) -> list[str]:
    return [finding.id for finding in found]


def test_sound_installation_has_nothing_that_is_wrong(rung, settings):
    settings.DEBUG = True  # what only matters in production is another test's
    settings.JOB_LOCK_TTL_SEC = 15
    runner.run_job("metricsCollect")
    halves = {"recovery.W006", "recovery.W007"}  # a server without the other one
    assert [it for it in examine_all() if it.id not in halves] == []


def test_apps_register_examinations_of_their_own():
    assert set(findings._examinations) >= {
        "breaker", "clock", "configuration", "dead entries", "due entries", "leases", "migrations",
        "pauses", "Redis", "runs", "schedules", "split orders", "tables", "workers",
    }  # fmt: skip


def test_worst_come_first_and_each_once():
    note, error = (Finding(it, "b", "text", "do") for it in (Severity.INFO, Severity.ERROR))
    other = Finding(Severity.ERROR, "a", "text", "do")
    assert in_order([note, error, other, error]) == [other, error, note]


def test_names_beyond_the_first_few_are_counted():
    assert some("abc") == "a, b, c"
    assert some("abcde") == "a, b, c and 2 more"
    assert some(["x"], 10) == "x and 9 more"


# Clock and workers


@pytest.mark.parametrize(("off_s", "way"), [(90, "ahead of"), (-90, "behind"), (0.5, None)])
def test_host_whose_clock_is_off_is_told(monkeypatch, off_s, way):
    genuine = db_now()
    monkeypatch.setattr(engine, "db_now", lambda: genuine)
    still = SimpleNamespace(time=lambda: genuine.timestamp() + off_s)
    monkeypatch.setattr(engine, "time", still)
    found = list(engine.clock())
    if way is None:
        assert found == []
    else:
        assert f"90.0 s {way} the database's" in only(found).finding
        assert only(found).severity is Severity.ERROR


def test_question_that_takes_long_is_no_clock_that_is_off():
    assert engine._beyond(3.0, 5.0) == 0.0
    assert engine._beyond(5.5, 5.0) == 0.5
    assert engine._beyond(-2.0, 5.0) == -2.0


def test_workers_that_are_silent_are_told():
    assert "has run a job ever" in only(engine.workers()).finding
    runner.run_job("metricsCollect")
    assert list(engine.workers()) == []
    for age_s, silent in ((60, False), (180, True)):
        Job.objects.update(heartbeat_at=db_now() - timedelta(seconds=age_s))
        assert ids(engine.workers()) == (["workers-silent"] if silent else [])
    for job in registry.all_jobs():
        pauses.pause(job.name, actor="cli:tester")
    assert list(engine.workers()) == [], "nobody is to work"


# Schedules


def test_schedules_in_step_are_silent():
    assert list(engine.ticks()) == []


def test_missing_schedules_are_told_together():
    Schedule.objects.filter(name__in=[OUTBOX, "auditArchive"]).delete()
    finding = only(engine.ticks())
    assert (finding.id, finding.severity) == ("schedule-missing", Severity.ERROR)
    assert finding.finding == f"No schedule, so no tick, starts auditArchive, {OUTBOX}."


def test_duplicate_schedule_is_told():
    row = Schedule.objects.get(name=OUTBOX)
    row.pk = None
    Schedule.objects.bulk_create([row])
    assert only(engine.ticks()).id == "schedule-duplicate"


def test_schedule_that_drifted_is_told(settings):
    settings.JOB_OUTBOX_PERIOD_SEC = 20
    finding = only(engine.ticks())
    assert (finding.id, finding.severity) == ("schedule-drifted", Severity.WARNING)
    assert "(JOB_OUTBOX_PERIOD_SEC=20): cron '* * * * * */10'." in finding.finding


def test_schedule_of_a_job_that_is_no_more_is_told(monkeypatch):
    register(monkeypatch)
    schedules.mend()
    monkeypatch.delitem(registry._jobs, NAME)
    assert NAME in only(engine.ticks()).finding


def test_lane_that_only_other_hosts_have_is_no_stranger():
    row = Schedule.objects.get(name=OUTBOX)
    row.pk, row.name = None, f"{OUTBOX}:9"
    Schedule.objects.bulk_create([row])
    assert list(engine.ticks()) == []


@pytest.mark.parametrize(
    ("ahead_s", "found"),
    [(9, []), (600, ["schedule-ahead"]), (-5, []), (-60, ["schedule-late"])],
)
def test_tick_that_is_far_off_is_told(ahead_s, found):
    moment = db_now() + timedelta(seconds=ahead_s)
    Schedule.objects.filter(name=OUTBOX).update(next_run=moment)
    assert ids(engine.ticks()) == found


def test_schedule_without_a_next_tick_is_told():
    Schedule.objects.filter(name=OUTBOX).update(next_run=None)
    assert only(engine.ticks()).id == "schedule-stopped"


# Leases, runs, pauses, Redis


def test_holder_that_died_is_told_once_its_lease_has_expired(rung):
    leases.acquire(OUTBOX)
    assert list(engine.stale_leases()) == []
    expire(OUTBOX)
    finding = only(engine.stale_leases())
    assert finding.finding.startswith(f"{leases.HOST}:")
    assert OUTBOX in finding.remedy


def test_job_whose_last_run_failed_is_told(monkeypatch):
    def fail(_run):
        raise RuntimeError("no\nway")

    register(monkeypatch, fail)
    runner.run_job(NAME)
    finding = only(engine.failed_runs())
    assert finding.finding == f"The last run of {NAME} failed: RuntimeError: no way"
    register(monkeypatch, lambda _run: Batch())
    runner.run_job(NAME)
    assert list(engine.failed_runs()) == []


def test_paused_job_is_a_note():
    pauses.pause(OUTBOX, actor="cli:tester")
    finding = only(engine.pauses())
    assert (finding.severity, finding.id) == (Severity.INFO, "job-paused")
    assert f"manage.py jobs resume {OUTBOX}" in finding.remedy


def test_redis_that_takes_no_writes_is_told(redis_up):
    assert list(engine.refused_writes()) == []
    client().config_set("maxmemory", 1)
    try:
        finding = only(engine.refused_writes())
    finally:
        client().config_set("maxmemory", 0)
    assert (finding.id, finding.severity) == ("redis-refuses-writes", Severity.WARNING)


def test_redis_that_is_down_is_told_once(settings):
    settings.REDIS_URL = f"redis://127.0.0.1:{closed_port()}/0"
    assert list(engine.refused_writes()) == []
    assert "recovery.W010" in ids(system.configuration())
    settings.REDIS_URL = ""
    assert list(engine.refused_writes()) == []


# Configuration


def test_system_checks_are_findings_with_their_hints(monkeypatch):
    messages = [
        checks.Error("It is\nwrong.", hint="Mend it.", id="recovery.E900"),
        checks.Warning("It is odd.", obj="thing", id="recovery.W900"),
        checks.Info("It is so.", id="recovery.I900"),
        checks.Warning("Known.", id="models.W037"),  # silenced by the settings
    ]
    monkeypatch.setattr(system, "run_checks", lambda **_: messages)
    found = list(system.configuration())
    assert ids(found) == ["recovery.E900", "recovery.W900", "recovery.I900"]
    assert [it.severity for it in found] == [Severity.ERROR, Severity.WARNING, Severity.INFO]
    assert (found[0].finding, found[0].remedy) == ("It is wrong.", "Mend it.")
    assert found[1].finding == "It is odd. (thing)"
    assert "recovery.W900" in found[1].remedy


@pytest.mark.parametrize(
    ("debug", "embedded", "asked"),
    [(False, False, True), (True, False, False), (False, True, False)],
)
def test_deployment_is_checked_where_it_is_one(monkeypatch, settings, debug, embedded, asked):
    settings.DEBUG, settings.EMBEDDED = debug, embedded
    options = []
    monkeypatch.setattr(system, "run_checks", lambda **it: options.append(it) or [])
    list(system.configuration())
    assert options == [{"include_deployment_checks": asked, "databases": ["default"]}]


def test_redis_that_evicts_or_has_no_password_is_found(redis_up, settings):
    client().config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert "recovery.W011" in ids(system.configuration())
    finally:
        client().config_set("maxmemory-policy", "noeviction")
    settings.DEBUG = settings.EMBEDDED = False
    settings.REDIS_URL = "redis://cache.invalid:6379/0"
    assert {"recovery.W010", "recovery.W022", "recovery.W023"} <= set(ids(system.configuration()))


@pytest.mark.mariadb
def test_isolation_and_charset_of_the_session_are_found():
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SET NAMES latin1")
    try:
        found = {it.id: it for it in system.configuration()}
    finally:
        connection.close()
    assert {"recovery.E006", "recovery.E008"} <= found.keys()
    assert found["recovery.E006"].severity is Severity.ERROR


# Tables


@contextmanager
def without(model: type[models.Model], it: Any) -> Iterator[None]:
    """Take an index or constraint of a model away for a while."""
    kind = "index" if isinstance(it, models.Index) else "constraint"
    kept = list(model._meta.constraints)
    model._meta.constraints = [other for other in kept if other is not it]  # SQLite remakes by it
    with connection.schema_editor() as editor:
        getattr(editor, f"remove_{kind}")(model, it)
    model._meta.constraints = kept
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            getattr(editor, f"add_{kind}")(model, it)


def named(model: type[models.Model], name: str) -> Any:
    (found,) = (it for it in [*model._meta.indexes, *model._meta.constraints] if it.name == name)
    return found


def test_tables_as_the_migrations_made_them_are_silent():
    assert list(schema.tables()) == []
    assert list(schema.migrations()) == []


@pytest.mark.parametrize(
    ("model", "name", "found"),
    [
        (OutboxEntry, "outbox_claim", "index-missing"),
        (SplitOrder, "order_stuck", "index-missing"),
        (Account, "account_code_unit", "unique-missing"),
        (AuditRecord, "audit_actor", "index-missing"),
        (OutboxEntry, "outbox_status_known", "check-missing"),
    ],
)
def test_what_a_table_lost_is_named(model, name, found):
    with without(model, named(model, name)):
        finding = only(schema.tables())
    assert (finding.id, finding.severity) == (found, Severity.ERROR)
    assert f"{model._meta.db_table}: {name}" in finding.finding


def test_index_of_another_name_serves():
    index = named(OutboxEntry, "outbox_claim")
    other = models.Index(fields=index.fields, name="outbox_by_hand")
    with without(OutboxEntry, index):
        with connection.schema_editor() as editor:
            editor.add_index(OutboxEntry, other)
        try:
            assert list(schema.tables()) == []
        finally:
            with connection.schema_editor() as editor:
                editor.remove_index(OutboxEntry, other)


def test_unique_columns_and_foreign_keys_are_looked_for(monkeypatch):
    monkeypatch.setattr(connection.introspection, "get_constraints", lambda *_: {})
    texts = {it.finding for it in schema.tables()}
    for what in (
        "unique constraint ledger_outboxentry: event_key",
        "unique constraint splits_splitorder: live_lot_id",
        "index splits_lot: parent_order_id",
        "unique constraint auth_permission: content_type_id, codename",
        "unique constraint splits_finalizestep: finalize_step_once",
    ):
        assert any(what in text for text in texts), what


def test_table_that_is_gone_is_told(monkeypatch):
    monkeypatch.setattr(Sample._meta, "db_table", "gone")
    assert only(schema.tables()).id == "table-missing"


def test_missing_migrations_are_told(monkeypatch):
    monkeypatch.setattr(schema, "missing_migrations", lambda _: ["ledger.0009_more"])
    assert "ledger.0009_more" in only(schema.migrations()).finding
