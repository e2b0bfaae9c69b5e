"""Moments of samples: kept fine and then coarse, flows as totals of what runs counted."""

import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from recovery import history
from recovery.admin.panels import DAY, HOUR, Chart, Line, drawn
from recovery.history import History, buckets, key_of
from recovery.models import Job, JobRun, Sample, SampleMoment
from tests.recovery.engine import NAME

pytestmark = pytest.mark.django_db

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
POSTED = "posted|ok"


class Clock:
    """The database's time, as a test sets it."""

    now = START

    def tick(self, **by: float) -> datetime:
        """Let time pass; return what it is then."""
        self.now += timedelta(**by)
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(history, "db_now", lambda: made.now)
    return made


@pytest.fixture(autouse=True)
def _flows(monkeypatch):
    monkeypatch.setattr(history, "_flows", {})

    @history.flow("posted", job=NAME)
    def posted(counts):
        return {"ok": counts.get("posted", 0), "bad": counts.get("failed", 0)}


def keep(*samples):
    history.keep(Sample(name=name, labels=labels, value=value) for name, labels, value in samples)


def ran(finished_at, *, job=NAME, status="ok", took_s=1, **counts):
    """Store a run that ended then."""
    Job.objects.get_or_create(name=job)
    return JobRun.objects.create(
        job_id=job,
        fence=1,
        host="h",
        pid=1,
        status=status,
        started_at=(finished_at or START) - timedelta(seconds=took_s),
        finished_at=finished_at,
        counts=counts,
    )


def totals():
    return SampleMoment.objects.latest("id").values["totals"]


def moment(at, *, is_coarse=True, **values):
    return SampleMoment.objects.create(at=at, is_coarse=is_coarse, values=values)


def total(at, amount, key=POSTED):
    return moment(at, totals={key: amount})


# What is kept


def test_moment_holds_every_gauge_by_name_and_labels(clock):
    keep(("depth", '{"status": "dead"}', 3.0), ("age", "", 1.5))
    assert SampleMoment.objects.get().values == {
        key_of("depth", '{"status": "dead"}'): 3.0,
        key_of("age"): 1.5,
        "totals": {},
    }
    assert SampleMoment.objects.get().at == START


def test_every_moment_is_kept_for_an_hour_and_one_a_minute_after(clock):
    for _ in range(4 * 90 + 1):
        keep(("depth", "", 1.0))
        clock.tick(seconds=15)
    now = clock.tick(seconds=-15)
    moments = Counter(now - at <= HOUR for at in SampleMoment.objects.values_list("at", flat=True))
    assert moments[True] == 4 * 60 + 1
    assert moments[False] == 30
    coarse = list(SampleMoment.objects.filter(is_coarse=True).values_list("at", flat=True))
    assert coarse == [START + timedelta(minutes=nth) for nth in range(91)]


def test_coarse_moments_are_kept_for_a_day_and_an_hour(clock):
    for _ in range(6 * 30):
        keep()
        clock.tick(minutes=10)
    now = clock.tick(minutes=-10)
    kept = SampleMoment.objects.values_list("at", flat=True)
    assert min(kept) == now - timedelta(hours=25)
    assert len(kept) == 6 * 25 + 1


def test_moments_far_apart_are_all_coarse(clock):
    for _ in range(3):
        keep()
        clock.tick(seconds=61)
    assert SampleMoment.objects.filter(is_coarse=True).count() == 3


# What flows


def test_totals_grow_by_what_runs_counted(clock):
    keep()
    assert totals() == {}
    ran(clock.tick(seconds=5), posted=3, failed=1)
    ran(clock.tick(seconds=5), posted=4)
    clock.tick(seconds=5)
    keep()
    assert totals() == {"posted|ok": 7, "posted|bad": 1}
    ran(clock.tick(seconds=5), posted=2)
    clock.tick(seconds=1)
    keep()
    assert totals() == {"posted|ok": 9, "posted|bad": 1}


def test_run_is_counted_once_also_on_the_bound_between_two_moments(clock):
    keep()
    at = clock.tick(seconds=15)
    ran(at, posted=3)
    keep()
    assert totals() == {POSTED: 3}
    for _ in range(3):
        clock.tick(seconds=15)
        keep()
    assert totals() == {POSTED: 3}


def test_what_ran_before_the_first_moment_is_not_counted(clock):
    ran(START - timedelta(seconds=1), posted=3)
    keep()
    clock.tick(seconds=15)
    keep()
    assert totals() == {}


def test_all_lanes_of_a_job_count_and_other_jobs_do_not(clock):
    keep()
    at = clock.tick(seconds=5)
    for job, amount in ((NAME, 1), (f"{NAME}:2", 10), (f"{NAME}:3", 100), (f"{NAME}Else", 1_000)):
        ran(at, job=job, posted=amount)
    clock.tick(seconds=1)
    keep()
    assert totals() == {POSTED: 111}


def test_run_that_is_not_finished_counts_once_it_is(clock):
    keep()
    clock.tick(seconds=5)
    run = ran(None, status="running", posted=3)
    clock.tick(seconds=5)
    keep()
    assert totals() == {}
    JobRun.objects.filter(pk=run.pk).update(status="ok", finished_at=clock.tick(seconds=5))
    clock.tick(seconds=5)
    keep()
    assert totals() == {POSTED: 3}


@pytest.mark.parametrize("status", ["failed", "died"])
def test_run_that_failed_counts_what_it_did(clock, status):
    keep()
    ran(clock.tick(seconds=5), status=status, posted=3)
    clock.tick(seconds=1)
    keep()
    assert totals() == {POSTED: 3}


def test_after_a_long_pause_only_the_last_minutes_are_counted(clock):
    keep()
    ran(clock.tick(minutes=5), posted=1_000)
    ran(clock.tick(hours=3), posted=3)
    clock.tick(minutes=1)
    keep()
    assert totals() == {POSTED: 3}


# What is read


def test_gauge_is_the_highest_of_each_bucket_and_unknown_where_nothing_was_sampled():
    for minute, value in ((0, 1), (5, 4), (9, 2), (25, 7)):
        moment(START + timedelta(minutes=minute), depth=value)
    moment(START + timedelta(minutes=31), other=5)
    now = START + timedelta(minutes=40)
    bounds = buckets(now, span=timedelta(minutes=40), count=4)
    assert bounds == [START + timedelta(minutes=nth) for nth in (0, 10, 20, 30, 40)]
    assert History(now).gauge("depth", bounds) == [4, None, 7, None]


def test_rate_is_what_flowed_a_minute_since_the_moment_before():
    for minute, amount in ((0, 100), (9, 190), (15, 250), (38, 250)):
        total(START + timedelta(minutes=minute), amount)
    now = START + timedelta(minutes=40)
    bounds = buckets(now, span=timedelta(minutes=40), count=4)
    assert History(now).rate(POSTED, bounds) == [None, 10.0, None, 0.0]
    assert History(now).rate("unknown", bounds) == [None, 0.0, None, 0.0]


def test_rate_is_not_negative_where_totals_began_anew():
    for minute, amount in ((5, 900), (15, 20), (25, 50)):
        total(START + timedelta(minutes=minute), amount)
    now = START + timedelta(minutes=30)
    bounds = buckets(now, span=timedelta(minutes=30), count=3)
    assert History(now).rate(POSTED, bounds) == [None, 0.0, 3.0]


def test_flowed_since_is_by_label_and_leaves_out_what_did_not_grow():
    moment(START, totals={"posted|ok": 5, "posted|bad": 2, "postedElse": 1})
    moment(START + timedelta(minutes=30), totals={"posted|ok": 8, "posted|bad": 2, "postedElse": 9})
    moment(
        START + timedelta(minutes=59),
        totals={"posted|ok": 9, "posted|bad": 2, "posted|new": 4, "postedElse": 9},
    )
    found = History(START + timedelta(minutes=60))
    assert found.flowed("posted", START) == {"ok": 4, "new": 4}
    assert found.flowed("posted", START + timedelta(minutes=1)) == {"ok": 1, "new": 4}
    assert found.flowed("postedElse", START) == {"": 8}
    assert found.flowed("posted", START + timedelta(minutes=45)) == {}


def test_history_reads_coarse_moments_of_a_day_and_all_of_an_hour_in_their_order():
    now = START + timedelta(hours=30)
    moment(now - timedelta(minutes=5), is_coarse=False, depth=4)
    moment(now - timedelta(hours=26), depth=1)
    moment(now - timedelta(hours=2), is_coarse=False, depth=2)
    moment(now - timedelta(hours=24), depth=3)
    moment(now - timedelta(minutes=50), depth=5)
    assert [values["depth"] for _at, values in History(now).moments] == [3, 5, 4]


# What is drawn


@pytest.mark.parametrize(("span", "count"), [(HOUR, 60), (DAY, 96)])
def test_chart_is_as_its_script_takes_it(span, count):
    now = START + timedelta(hours=24)
    moment(now - timedelta(seconds=90), depth=3, totals={POSTED: 10})
    moment(now - timedelta(seconds=30), depth=1, totals={POSTED: 40})
    lines = (Line("waiting", "depth"), Line("a minute", POSTED, is_flow=True))
    chart = drawn(Chart("some", "Entries", span, lines), History(now))
    content = json.loads(chart["content"])
    assert [it["label"] for it in content["sets"]] == ["waiting", "a minute"]
    assert len(content["labels"]) == count
    assert all(len(it["data"]) == count for it in content["sets"])
    assert all(re.fullmatch(r"\d\d:\d\d", it) for it in content["labels"])
    depth = content["sets"][0]["data"]
    assert depth[-2:] == ([3, 1] if span == HOUR else [None, 3])
    assert chart["says"].startswith("Entries; waiting: now ")
    assert chart["says"].partition("at most ")[2].startswith("3")


def test_chart_of_nothing_says_its_title_only():
    chart = drawn(Chart("some", "Entries", HOUR, (Line("waiting", "depth"),)), History(START))
    assert chart["says"] == "Entries"
    assert json.loads(chart["content"])["sets"][0]["data"] == [None] * 60
