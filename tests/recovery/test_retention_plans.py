"""Each rule of retention finds its rows by an index, and reads no young ones."""

import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django_q.models import OrmQ, Task

from ledger.models import OutboxEntry, Transaction
from recovery import retention
from recovery.models import Job, JobRun, Plan, PlanItem, SampleMoment
from splits.models import StuckSighting
from tests.tables import Sql, let_plan, moment, plans_of, reads_at_most, store_many, text

pytestmark = pytest.mark.django_db(transaction=True)  # ANALYZE commits

MANY, OLD = 20_000, 50
START = datetime(2026, 1, 1, tzinfo=UTC)
AT = moment("n", f"{START - timedelta(seconds=OLD + 1):%Y-%m-%d %H:%M:%S}")
PRIMARY = "PRIMARY|sqlite_autoindex"
RULES = {rule.name: rule for rule in retention.all_rules()}


def runs():
    store_many(Job, 1, name="job")
    run_id = text(f"{'0' * 25}{{SUBSTR(10000000 + n, 2)}}")
    facts = {"job": "job", "fence": 1, "host": "h", "pid": 1, "status": "ok"}
    store_many(JobRun, MANY, run_id=run_id, started_at=AT, **facts)


def tasks():
    facts = {"name": "n", "func": "f", "success": False, "started": AT, "stopped": AT}
    store_many(Task, MANY, id=text("{n}"), **facts)


def queued():
    key = Sql(f"CASE WHEN n <= {OLD} THEN 'former' ELSE 'recovery' END")
    store_many(OrmQ, MANY, key=key, payload="p", lock=AT)


def sessions():
    store_many(Session, MANY, session_key=text("{n}"), session_data="", expire_date=AT)


def sightings():
    store_many(StuckSighting, MANY, order_ref=Sql("n"), epoch=1, seen_at=AT)


def entries():
    facts = {"event_type": "t", "content_hash": "h", "event_key": text("k{n}")}
    store_many(Transaction, MANY, id=Sql("n"), **facts)
    posted = {"status": "posted", "created_at": AT, "posted_at": AT}
    store_many(OutboxEntry, MANY, aggregate=text("a{n}"), payload={}, **posted, **facts)


def moments():
    store_many(SampleMoment, MANY, at=AT, is_coarse=Sql("n % 2"), values={})


def plans():
    facts = {"action": "a", "actor": "a", "reason": "r", "status": "done"}
    store_many(Plan, MANY, id=Sql("n"), created_at=AT, **facts)


def rows_of_plans():
    plans()
    store_many(PlanItem, MANY, plan=Sql("n"), row_id=Sql("n"))


FOUND = {
    "expired_sessions": (sessions, Session, "django_session_expire_date"),
    "failed_tasks": (tasks, Task, PRIMARY),
    "job_runs": (runs, JobRun, "jobrun_started_at"),
    "left_tasks": (queued, OrmQ, PRIMARY),
    "outbox_entries": (entries, OutboxEntry, "outbox_status_age"),
    "plan_rows": (rows_of_plans, PlanItem, "recovery_planitem_plan_id|planitem_once"),
    "plans": (plans, Plan, "plan_created_at|plan_status_id"),
    "sample_moments": (moments, SampleMoment, "samplemoment_coarse_at"),
    "stuck_sightings": (sightings, StuckSighting, "sighting_seen_at"),
}
WALKED = {"failed_tasks", "left_tasks"}
"""Tables of django-q2 without an index on age, which hold few rows: read through once a sweep."""


@pytest.fixture(params=FOUND)
def rule(request):
    """Fill the table of a rule; return the rule."""
    fill, model, _index = FOUND[request.param]
    fill()
    let_plan(model, Plan, Transaction)
    return RULES[request.param]


def undone(action):
    """Return what does it in a transaction that is rolled back."""

    def done():
        with transaction.atomic():
            action()
            transaction.set_rollback(True)

    return done


def test_rows_are_found_and_counted_by_an_index_and_young_ones_not_read(rule):
    now = START + timedelta(days=rule.kept_days)
    swept = []

    def sweep():
        swept.append(sum(rule.sweep(now, run_id=uuid4(), seal=lambda: None)))

    _fill, model, index = FOUND[rule.name]
    table = connection.ops.quote_name(model._meta.db_table)
    looks = plans_of(undone(sweep), f"FROM {table}")
    looks += plans_of(lambda: rule.preview(now), f"FROM {table}")
    if rule.name not in WALKED:
        for plan in looks:
            assert any(re.match(f"{index}|{PRIMARY}", it) for it in plan.indexes), plan
            assert not plan.scans, plan
        assert any(re.match(index, it) for it in looks[0].indexes), looks[0]
        assert reads_at_most(5 * OLD, lambda: rule.preview(now))
        assert reads_at_most(15 * OLD, undone(sweep))
    assert set(swept) == {OLD}
    assert rule.preview(now).rows == OLD


@pytest.mark.mariadb
@pytest.mark.parametrize("name", sorted(WALKED))
def test_tables_without_an_index_on_age_are_not_read_anew_by_each_batch(name, monkeypatch):
    monkeypatch.setattr(retention, "FIRST_ROWS", 10)
    monkeypatch.setattr(retention, "MOST_ROWS", 10)
    FOUND[name][0]()
    rule = RULES[name]
    now = START + timedelta(days=rule.kept_days)
    counts = []

    def sweep():
        counts.extend(rule.sweep(now, run_id=uuid4(), seal=lambda: None))

    assert reads_at_most(2 * MANY, sweep)
    assert counts == [10] * (OLD // 10)


def test_each_rule_has_its_plan_looked_at():
    assert set(FOUND) == set(RULES)
