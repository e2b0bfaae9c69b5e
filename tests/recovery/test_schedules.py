"""Schedules: one row a job, ticks by the database's clock."""

import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace

import pytest
from django_q.models import Schedule

from recovery import leases, registry, runner, schedules
from recovery.clock import db_now
from recovery.models import Job
from recovery.schedules import Tick, Ticker, cron_of, mend, next_slot
from tests.recovery.engine import in_threads, row_held

pytestmark = pytest.mark.django_db(transaction=True)

OUTBOX = "processLedgerOutbox"
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


class Pushes:
    """A broker that keeps what is pushed."""

    list_key = "recovery"

    def __init__(self):
        self.tasks = []

    def enqueue(self, task):
        self.tasks.append(task)
        return len(self.tasks)


@pytest.fixture
def pushes():
    return Pushes()


@pytest.fixture(autouse=True)
def known_jobs():
    schedules.ensure_rows()


@pytest.fixture
def once_a_day(settings):
    """Let all jobs tick once a day, and not within the test."""
    for job in registry.all_jobs():
        setattr(settings, job.period_setting, schedules.DAY_S)
    while db_now().timestamp() % schedules.DAY_S > schedules.DAY_S - 60:
        time.sleep(0.1)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def outbox():
    return Schedule.objects.get(name=OUTBOX)


def due(name=OUTBOX, *, by_s=1.0):
    Schedule.objects.filter(name=name).update(next_run=db_now() - timedelta(seconds=by_s))


def only_outbox():
    """Leave only the outbox's schedule due; the others far from their tick."""
    for job in registry.all_jobs():
        slot = next_slot(cron_of(job.period_s), db_now() + timedelta(seconds=job.period_s / 2))
        Schedule.objects.filter(name=job.name).update(
            next_run=min(slot, db_now() + timedelta(days=1))
        )


@pytest.mark.parametrize(
    ("period_s", "cron"),
    [
        (1, "* * * * * */1"),
        (10, "* * * * * */10"),
        (15, "* * * * * */15"),
        (30, "* * * * * */30"),
        (60, "*/1 * * * * 0"),
        (300, "*/5 * * * * 0"),
        (3_600, "0 */1 * * * 0"),
        (21_600, "0 */6 * * * 0"),
        (86_400, "0 0 * * * 0"),
    ],
)
def test_cron_line_has_six_fields_and_ticks_every_period(period_s, cron):
    assert cron_of(period_s) == cron
    first = next_slot(cron, NOW)
    slots = [first]
    for _ in range(70):
        slots.append(next_slot(cron, slots[-1]))
    gaps = {later - earlier for earlier, later in pairwise(slots)}
    assert gaps == {timedelta(seconds=period_s)}
    assert first.timestamp() % period_s == 0, "all hosts agree on the slots"


@pytest.mark.parametrize("period_s", [7, 45, 90, 7 * 60, 5 * 3_600, 2 * 86_400])
def test_uneven_period_is_refused(period_s):
    with pytest.raises(ValueError, match="evenly"):
        cron_of(period_s)


def test_each_job_gets_one_schedule():
    before = db_now()
    mend()
    found = {row.name: row for row in Schedule.objects.all()}
    assert sorted(found) == [job.name for job in registry.all_jobs()]
    row = found[OUTBOX]
    assert (row.func, row.args, row.repeats, row.schedule_type) == (
        "recovery.runner.run_task", "('processLedgerOutbox',)", -1, "C",
    )  # fmt: skip
    assert row.cron == "* * * * * */10"
    assert before < row.next_run <= db_now() + timedelta(seconds=10)


def test_first_tick_is_by_the_database_though_the_host_reckons_two_hours_ahead(monkeypatch):
    before = db_now()
    ahead = before + timedelta(hours=2)
    monkeypatch.setattr(Schedule, "calculate_next_run", lambda *_: ahead)
    mend()
    assert before < outbox().next_run <= db_now() + timedelta(seconds=10)


def test_mending_what_is_in_step_changes_nothing(caplog):
    mend()
    before = list(Schedule.objects.order_by("pk").values())
    caplog.set_level("INFO")
    caplog.clear()
    mend()
    assert list(Schedule.objects.order_by("pk").values()) == before
    assert not caplog.records


def test_duplicates_are_removed_and_the_tick_kept():
    mend()
    due(by_s=3)
    kept = outbox()
    Schedule.objects.create(name=OUTBOX, func=kept.func, args=kept.args, cron=kept.cron)
    mend()
    assert (outbox().pk, outbox().next_run) == (kept.pk, kept.next_run)


def test_tick_is_kept_when_anything_but_the_cron_was_changed():
    mend()
    due(by_s=3)
    kept = outbox().next_run
    Schedule.objects.filter(name=OUTBOX).update(repeats=5, args="('other',)", hook="x.y")
    mend()
    row = outbox()
    assert row.next_run == kept
    assert (row.repeats, row.args, row.hook) == (-1, "('processLedgerOutbox',)", None)


def test_changed_period_moves_the_tick(settings):
    mend()
    settings.JOB_OUTBOX_PERIOD_SEC = 3_600
    before = db_now()
    mend()
    row = outbox()
    assert row.cron == "0 */1 * * * 0"
    assert next_slot(row.cron, before) <= row.next_run <= next_slot(row.cron, db_now())


def test_missing_tick_is_set_again():
    mend()
    Schedule.objects.filter(name=OUTBOX).update(next_run=None)
    mend()
    assert outbox().next_run is not None


def test_schedule_of_a_job_no_longer_registered_is_dropped():
    mend()
    Schedule.objects.create(name="gone", func=schedules.TASK, args="('gone',)")
    Schedule.objects.create(name="theirs", func="math.floor", args="1.5")
    mend()
    names = set(Schedule.objects.values_list("name", flat=True))
    assert "gone" not in names
    assert "theirs" in names, "what other apps schedule is theirs"


NEWER = "sweepSamples"


@pytest.fixture
def of_newer_code():
    """Return what schedules a job that only newer code knows, made or beating so long ago."""

    def schedule(*, made_s=0.0, beat_s=None, period_s=10, cron=None):
        Job.objects.make([NEWER])
        now = db_now()
        beat_at = None if beat_s is None else now - timedelta(seconds=beat_s)
        made_at = now - timedelta(seconds=made_s)
        Job.objects.filter(name=NEWER).update(created_at=made_at, heartbeat_at=beat_at)
        Schedule.objects.create(
            name=NEWER,
            func=schedules.TASK,
            args=repr((NEWER,)),
            schedule_type=Schedule.CRON,
            cron=cron_of(period_s),
        )
        if cron is not None:
            Schedule.objects.filter(name=NEWER).update(cron=cron)

    return schedule


@pytest.mark.parametrize(
    ("signs", "kept"),
    [
        ({}, True),
        ({"made_s": 200}, True),
        ({"made_s": 301}, False),
        ({"made_s": 9_999, "beat_s": 200}, True),
        ({"made_s": 9_999, "beat_s": 301}, False),
        ({"beat_s": 301}, False),
        ({"made_s": 3 * 86_400 - 100, "period_s": 86_400}, True),
        ({"made_s": 3 * 86_400 + 1, "period_s": 86_400}, False),
        ({"beat_s": 200, "cron": ""}, True),
        ({"beat_s": 301, "cron": "nonsense"}, False),
    ],
)
def test_ticks_of_newer_codes_job_are_left_alone_while_it_lives(of_newer_code, signs, kept):
    of_newer_code(**signs)
    mend()
    assert Schedule.objects.filter(name=NEWER).exists() is kept


def test_task_of_newer_codes_job_is_left_and_said_once(caplog, monkeypatch):
    monkeypatch.setattr(runner, "_unknown", set())
    outcomes = [runner.run_task(NEWER) for _ in range(2)]
    assert [(it["status"], it["reason"]) for it in outcomes] == [("skipped", "unknown")] * 2
    assert warnings(caplog) == ["job_left_to_newer_code"]


def test_missing_rows_are_made():
    Job.objects.all().delete()
    mend()
    assert set(Job.objects.values_list("name", flat=True)) == {
        job.name for job in registry.all_jobs()
    }


def test_two_hosts_mending_at_once_make_one_row_a_job():
    errors = [result for result in in_threads(*[mend] * 4) if result is not None]
    assert errors == []
    mend()
    names = list(Schedule.objects.values_list("name", flat=True))
    assert sorted(names) == [job.name for job in registry.all_jobs()]


@pytest.mark.mariadb
def test_hung_holder_of_a_row_keeps_nobody_from_mending_the_others(monkeypatch):
    monkeypatch.setattr(leases, "PATIENCE_S", (0.01,))
    with row_held(OUTBOX):
        mend()
        assert not Schedule.objects.filter(name=OUTBOX).exists()
        assert Schedule.objects.count() == len(registry.all_jobs()) - 1
    mend()
    assert Schedule.objects.filter(name=OUTBOX).count() == 1


@pytest.mark.usefixtures("once_a_day")
def test_tick_starts_what_is_due_once_and_moves_on_to_the_next_slot(pushes):
    mend()
    only_outbox()
    due()
    ticker = Ticker(pushes)
    assert ticker.tick()
    assert ticker.tick()
    assert (len(pushes.tasks), ticker.ticks) == (1, 1)
    assert outbox().next_run == next_slot("0 0 * * * 0", db_now())


@pytest.mark.usefixtures("once_a_day")
def test_nothing_due_is_no_tick(pushes):
    mend()
    ticker = Ticker(pushes)
    Schedule.objects.update(next_run=db_now() + timedelta(hours=1))
    assert ticker.tick()
    assert (pushes.tasks, ticker.ticks) == ([], 0)


@pytest.mark.usefixtures("once_a_day")
def test_second_without_a_tick_costs_one_query(pushes, django_assert_num_queries):
    mend()
    Schedule.objects.update(next_run=db_now() + timedelta(hours=1))
    with django_assert_num_queries(1):
        assert Ticker(pushes).tick()


def test_nothing_scheduled_is_no_tick_and_no_wrong_clock(pushes, caplog):
    ticker = Ticker(pushes)
    assert ticker.tick()
    assert (pushes.tasks, ticker.ticks, warnings(caplog)) == ([], 0, [])


@pytest.mark.usefixtures("once_a_day")
def test_missed_ticks_are_one(pushes):
    mend()
    only_outbox()
    due(by_s=3_600)
    ticker = Ticker(pushes)
    for _ in range(3):
        ticker.tick()
    assert len(pushes.tasks) == 1
    assert outbox().next_run > db_now() - timedelta(seconds=1)


@pytest.mark.usefixtures("once_a_day")
def test_two_hosts_ticking_at_once_start_it_once():
    mend()
    only_outbox()
    due()
    both = Pushes(), Pushes()
    in_threads(*[Ticker(pushes).tick for pushes in both])
    assert sum(len(pushes.tasks) for pushes in both) == 1


def test_tick_set_far_ahead_is_pulled_back(pushes, caplog):
    mend()
    Schedule.objects.filter(name=OUTBOX).update(next_run=db_now() + timedelta(hours=2))
    Ticker(pushes).tick()
    assert outbox().next_run <= db_now() + timedelta(seconds=10)
    assert warnings(caplog) == ["tick_pulled_back"]


@pytest.mark.usefixtures("once_a_day")
def test_tick_one_period_ahead_is_left(pushes):
    mend()
    ahead = db_now() + timedelta(days=1)
    Schedule.objects.filter(name=OUTBOX).update(next_run=ahead)
    Ticker(pushes).tick()
    assert abs(outbox().next_run - ahead) < timedelta(milliseconds=1)


def test_pulling_back_a_tick_another_host_moved_meanwhile_changes_nothing():
    mend()
    now, kept = db_now(), outbox().next_run
    schedules.pull_back(now, [Tick(outbox().pk, OUTBOX, now + timedelta(hours=2), now)])
    assert outbox().next_run == kept


@pytest.mark.parametrize(
    ("ahead_s", "took_s", "in_step"),
    [
        (1.0, 0, True),
        (1.1, 0, False),
        (1.1, 0.2, True),
        (30.9, 30, True),
        (-1.0, 0, True),
        (-1.1, 0, False),
        (-1.1, 30, False),
    ],
)
def test_clocks_are_in_step_within_a_second_and_the_time_of_the_question(ahead_s, took_s, in_step):
    assert schedules.is_in_step(ahead_s, took_s) is in_step


@pytest.mark.parametrize("off_s", [-7_200, -300, 300, 7_200])
def test_host_whose_clock_is_off_leaves_the_tick_and_says_it_once(
    pushes, monkeypatch, caplog, off_s
):
    mend()
    due()
    ticker = Ticker(pushes)
    right = time.time
    with monkeypatch.context() as patch:
        patch.setattr(schedules.time, "time", lambda: right() + off_s)
        assert [ticker.tick() for _ in range(3)] == [False] * 3
        assert pushes.tasks == []
        assert warnings(caplog) == ["clock_off"]
    assert ticker.tick()
    assert pushes.tasks


def test_host_whose_clock_is_put_right_while_it_is_compared_leaves_the_tick(monkeypatch):
    mend()
    right = time.time
    readings = iter([right() - 7_200])
    monkeypatch.setattr(schedules.time, "time", lambda: next(readings, right()))
    assert schedules.ticks_if_in_step() is None
    assert schedules.ticks_if_in_step()


@pytest.mark.parametrize("off_s", [-0.8, 0.8])
def test_host_within_a_second_ticks(pushes, monkeypatch, off_s):
    mend()
    due()
    right = time.time
    monkeypatch.setattr(schedules.time, "time", lambda: right() + off_s)
    assert Ticker(pushes).tick()


@pytest.mark.usefixtures("once_a_day")
def test_tick_with_redis_down_queues_in_the_table(redis_up):
    from django_q.brokers import get_broker
    from django_q.models import OrmQ

    mend()
    only_outbox()
    due()
    redis_up.kill()
    before = db_now()
    Ticker(get_broker()).tick()
    assert OrmQ.objects.count() == 1
    assert outbox().next_run > before


def test_host_that_sleeps_between_its_two_clocks_is_in_step(monkeypatch):
    def drowsy():
        read = time.time()
        time.sleep(0.1)
        return read

    mend()
    monkeypatch.setattr(schedules, "time", SimpleNamespace(time=drowsy, monotonic=time.monotonic))
    monkeypatch.setattr(schedules, "MAX_SKEW_S", 0.05)
    assert schedules.ticks_if_in_step()
