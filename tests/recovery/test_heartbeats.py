"""Heartbeats: a literal key with the contract's fields, the same facts in columns."""

import json
import os
import time
from datetime import datetime, timedelta

import pytest

from recovery import leases, runner
from recovery.clock import db_now
from recovery.registry import Batch
from tests.recovery.engine import NAME, client, expire, in_thread, register, row

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "job:heartbeat:testJob"
FIELDS = {"job", "at", "host", "pid", "run_id", "status", "duration_s", "fence"}


def beat():
    return json.loads(client().get(KEY))


def test_heartbeat_has_exactly_the_fields_of_the_contract(redis_up, monkeypatch):
    register(monkeypatch)
    runner.run_job(NAME)
    assert set(beat()) == FIELDS


@pytest.mark.parametrize(("fails", "ending"), [(False, "ok"), (True, "failed")])
def test_heartbeat_says_running_and_then_how_the_run_ended(redis_up, monkeypatch, fails, ending):
    seen = []

    def work(run):
        seen.append(beat())
        if fails:
            raise RuntimeError("no")
        return Batch()

    register(monkeypatch, work)
    runner.run_job(NAME)
    assert (seen[0]["status"], beat()["status"]) == ("running", ending)
    assert seen[0]["run_id"] == beat()["run_id"]


def test_heartbeat_follows_every_batch(redis_up, monkeypatch):
    durations = []

    def work(_run):
        durations.append(beat()["duration_s"])
        client().delete(KEY)
        client().set(KEY, json.dumps({"duration_s": -1}))
        return Batch(more=len(durations) < 3)

    register(monkeypatch, work)
    runner.run_job(NAME)
    assert len(durations) == 3
    assert -1 not in durations


def test_run_that_lost_its_lease_leaves_the_heartbeat_of_the_next(redis_up, monkeypatch):
    others = []

    def work(run):
        if run.lease.fence > 1 or others:
            return Batch()
        expire()
        in_thread(lambda: runner.run_job(NAME))
        others.append(beat())
        return Batch(more=True)  # and a beat

    register(monkeypatch, work)
    runner.run_job(NAME)
    assert beat() == others[0]
    assert (beat()["fence"], beat()["status"]) == (2, "ok")


def test_heartbeat_that_redis_kept_of_another_database_is_overwritten(redis_up, monkeypatch):
    register(monkeypatch, lambda run: Batch(more=not run.counts, counts={"done": 1}))
    client().set(KEY, json.dumps({"fence": 10**6}))
    runner.run_job(NAME)
    assert (beat()["fence"], beat()["status"]) == (1, "ok")


@pytest.mark.parametrize("text", ["no JSON", "5", '"text"', "{}", '{"fence": null}'])
def test_what_else_stands_under_the_key_is_overwritten(redis_up, monkeypatch, text):
    register(monkeypatch)
    client().set(KEY, text)
    runner.run_job(NAME)
    assert set(beat()) == FIELDS


def test_columns_hold_the_same_facts(redis_up, monkeypatch):
    register(monkeypatch)
    before, begun = db_now(), time.monotonic()
    runner.run_job(NAME)
    took_s, after = time.monotonic() - begun, db_now()
    said, job = beat(), row()
    assert said["job"] == job.name
    assert (said["host"], said["pid"]) == (job.heartbeat_host, job.heartbeat_pid)
    assert (said["host"], said["pid"]) == (leases.HOST, os.getpid())
    assert said["run_id"] == str(job.heartbeat_run_id)
    assert said["fence"] == job.fence
    assert said["status"] == job.last_status
    assert 0 <= job.last_duration_s <= said["duration_s"] + 0.001 <= took_s + 0.002
    tick = timedelta(milliseconds=2)  # SQLite's clock, and ours beside the database's
    for at in (datetime.fromisoformat(said["at"]), job.heartbeat_at):
        assert before - tick <= at <= after + tick


def test_heartbeat_is_in_utc_by_the_databases_clock(redis_up, monkeypatch):
    register(monkeypatch)
    monkeypatch.setattr("time.time", lambda: 0.0)
    runner.run_job(NAME)
    at = datetime.fromisoformat(beat()["at"])
    assert at.utcoffset() == timedelta(0)
    assert abs(at - db_now()) < timedelta(minutes=5)


@pytest.mark.parametrize(("period_s", "expiry_s"), [(10, 600), (60, 600), (3600, 36_000)])
def test_heartbeat_expires_after_ten_periods_or_ten_minutes(
    redis_up, monkeypatch, settings, period_s, expiry_s
):
    settings.JOB_OUTBOX_PERIOD_SEC = period_s
    register(monkeypatch)
    runner.run_job(NAME)
    assert expiry_s - 300 < client().ttl(KEY) <= expiry_s


def test_columns_beat_without_redis(no_redis, monkeypatch):
    beats = []

    def work(run):
        beats.append(row().heartbeat_at)
        run.renew_lease()
        return Batch(more=len(beats) < 2)

    register(monkeypatch, work)
    runner.run_job(NAME)
    assert None not in beats
    assert beats[0] <= beats[1] <= row().heartbeat_at
    assert (row().heartbeat_pid, row().last_status) == (os.getpid(), "ok")


def test_run_that_lost_its_lease_leaves_the_new_holders_heartbeat(redis_up, monkeypatch):
    def work(run):
        expire()
        leases.acquire(NAME)
        client().set(KEY, "the new holder's")
        run.renew_lease()
        return Batch()

    register(monkeypatch, work)
    assert runner.run_job(NAME).status == "failed"
    assert client().get(KEY) == b"the new holder's"
    assert row().last_status == "running"
