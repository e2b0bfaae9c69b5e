"""``manage.py audit search``: what it finds, in which order, and what it refuses."""

import io
import json
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

from recovery import audit, search
from recovery.clock import db_now
from recovery.models import AuditRecord
from recovery.search import Search, find
from tests.tables import let_plan, moment, plans_of, reads_at_most, store_many, text

pytestmark = pytest.mark.django_db(transaction=True)

MANY, FEW = 20_000, 20
ROUND = ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00.123000+00:00")


def written(target="job/a", **fields):
    """Write a record of ``TYPE/ID``; return its id."""
    kind, _, target_id = target.partition("/")
    facts = {"actor": "cli:ann", "action": "job-paused", **fields}
    with transaction.atomic():
        return audit.record(target_type=kind, target_id=target_id, **facts).pk


def at(moment_, **fields):
    """Write a record of this moment; return its id."""
    record = AuditRecord(
        actor="a", action="b", target_type="c", target_id="d", at=moment_, **fields
    )
    record.save()
    return record.pk


def searched(*arguments):
    out = io.StringIO()
    call_command("audit", "search", "--json", *arguments, stdout=out)
    return json.loads(out.getvalue())


def ids(*arguments):
    return [record["id"] for record in searched(*arguments)["records"]]


def refusal(*arguments):
    with pytest.raises(CommandError) as caught:
        call_command("audit", *arguments)
    assert caught.value.returncode == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_record_is_shown_whole():
    run_id = uuid4()
    pk = written(
        reason="why", before={"a": 1}, after={"a": 2}, evidence={"板": "木"}, run_id=run_id
    )
    (record,) = searched()["records"]
    assert record.pop("at") == AuditRecord.objects.get().at.isoformat()
    assert record == {
        "id": pk,
        "actor": "cli:ann",
        "action": "job-paused",
        "target_type": "job",
        "target_id": "a",
        "reason": "why",
        "before": {"a": 1},
        "after": {"a": 2},
        "evidence": {"板": "木"},
        "run_id": str(run_id),
    }


def test_nothing_found_is_no_error():
    assert searched("--actor", "nobody") == {"more": False, "records": []}


def test_newest_come_first_and_more_are_announced():
    first, second, third = (written() for _ in range(3))
    assert searched("--limit", "2")["more"] is True
    assert ids("--limit", "2") == [third, second]
    assert (ids("--limit", "3"), searched("--limit", "3")["more"]) == (
        [third, second, first],
        False,
    )
    assert ids("--limit", "0") == [third, second, first]


def test_fifty_are_shown_unless_said_otherwise():
    for _ in range(51):
        written()
    assert (len(ids()), searched()["more"]) == (50, True)


def test_each_filter_alone():
    run_id = uuid4()
    other = written("split-order/SO-1", actor="bob", action="job-resumed")
    mine = written("job/a", run_id=run_id, reason="Disk full")
    assert ids("--actor", "cli:ann") == [mine]
    assert ids("--action", "job-resumed") == [other]
    assert ids("--target", "job/a") == [mine]
    assert ids("--target", "SO-1") == [other]
    assert ids("--run", str(run_id)) == [mine]
    assert ids("--text", "disk", "--all") == [mine]


def test_filters_together_must_all_hold():
    written(reason="no")
    wanted = written("job/b", reason="yes")
    written("job/b", actor="bob", reason="yes")
    assert ids("--actor", "cli:ann", "--target", "b", "--text", "yes", "--since", "1h") == [wanted]


def test_id_alone_is_found_under_every_type_newest_first():
    found = [written(target) for target in ("job/7", "outbox-entry/7", "job/7", "job/8")]
    assert ids("--target", "7") == found[2::-1]


def test_id_may_have_a_slash():
    with_slash = written("split-order/A/7")
    assert ids("--target", "A/7") == ids("--target", "split-order/A/7") == [with_slash]


def test_times_and_ages_are_a_half_open_range():
    now = db_now().replace(microsecond=0)
    old, middle = at(now - timedelta(days=2)), at(now - timedelta(hours=2))
    new = at(now - timedelta(minutes=2))
    assert ids("--since", "7d") == [new, middle, old]
    assert ids("--since", "1d") == [new, middle]
    assert ids("--until", "1h") == [middle, old]
    assert ids("--since", "3h", "--until", "60m") == [middle]
    edge = (now - timedelta(hours=2)).isoformat()
    assert ids("--since", edge) == [new, middle]
    assert ids("--until", edge) == [old]
    assert ids("--since", edge.replace("+00:00", "Z")) == [new, middle]


def test_time_without_zone_is_of_the_sites_zone(settings):
    settings.TIME_ZONE = "Asia/Shanghai"
    there = at(db_now().replace(year=2026, month=1, day=1, hour=3, microsecond=0))
    assert ids("--since", "2026-01-01", "--until", "2026-01-01T10:00") == []
    assert ids("--since", "2026-01-01", "--until", "2026-01-01T12:00") == [there]


@pytest.mark.parametrize("wanted", ["GRÜN", "grün", '"quoted"', "木板", "status", "back\\slash"])
def test_text_is_looked_for_in_reason_and_json(wanted):
    kept = {"status": 'Grün "quoted" 木板 back\\slash'}
    found = [written(**{name: kept}) for name in ("before", "after", "evidence")]
    written()
    with_reason = written(reason='status Grün "quoted" 木板 back\\slash')
    assert ids("--text", wanted, "--all") == [with_reason, *reversed(found)]


def test_text_alone_is_refused_with_a_way_out():
    assert "--since 7d" in refusal("search", "--text", "x")
    assert ids("--text", "x", "--since", "1h") == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "audit search"),
        (["search", "--since", "yesterday"], "2026-11-24T12:30Z"),
        (["search", "--until", "7"], "7d"),
        (["search", "--since", "99999999999w"], "age"),
        (["search", "--since", "1h", "--until", "2h"], "not before"),
        (["search", "--run", "7"], "id"),
        (["search", "--limit", "-1"], "0 is all"),
        (["search", "--limit", "many"], "0 is all"),
        (["verify", "--kept", "7"], "NUMBER:HASH"),
        (["verify", "--kept", "²:" + "a" * 64], "NUMBER:HASH"),
        (["verify", "--kept", "7:" + "x" * 64], "NUMBER:HASH"),
        (["restore", "--away", "--target", "job/x", "--since", "7d"], "--since, --target"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(arguments, hint):
    assert hint in refusal(*arguments)


def test_people_get_a_table():
    written("split-order/SO-1", action="split-order-released", reason="two\nlines")
    out = io.StringIO()
    call_command("audit", "search", stdout=out)
    head, row, total = out.getvalue().splitlines()
    assert head.split() == ["time", "(UTC)", "actor", "action", "target", "reason"]
    assert row.split()[2:] == [
        "cli:ann",
        "split-order-released",
        "split-order/SO-1",
        "two",
        "lines",
    ]
    assert total == "1 record"


def test_people_are_told_of_more():
    written()
    written()
    out = io.StringIO()
    call_command("audit", "search", "--limit", "1", stdout=out)
    assert out.getvalue().splitlines()[-1] == "1 record, and there are more: see --limit"


@pytest.mark.parametrize("together", [1, 3, 7])
@pytest.mark.parametrize("start", ROUND)
def test_pages_by_time_yield_each_record_once(monkeypatch, together, start):
    monkeypatch.setattr(search, "FIRST_PAGE", 2)
    monkeypatch.setattr(search, "LARGEST_PAGE", 3)
    begun = db_now().fromisoformat(start)
    made = [at(begun + timedelta(milliseconds=n // together)) for n in range(20)]
    found = find(Search(since=begun - timedelta(days=1)))
    assert [record.pk for record in found] == made[::-1]


def test_pages_by_id_yield_each_record_once(monkeypatch):
    monkeypatch.setattr(search, "FIRST_PAGE", 2)
    monkeypatch.setattr(search, "LARGEST_PAGE", 3)
    made = [written() for _ in range(20)]
    assert [record.pk for record in find(Search(actor="cli:ann"))] == made[::-1]
    assert [record.pk for record in find(Search(target="a"))] == made[::-1]


@pytest.fixture
def records():
    """Store many records over half a year of five targets' types, actors, actions and runs."""
    store_many(
        AuditRecord,
        MANY,
        at=moment("n * 800"),
        actor=text("actor{n % 1000}"),
        action=text("action{n % 1000}"),
        target_type=text("type{n % 5}"),
        target_id=text("{n % 1000}"),
        run_id=text(f"{'0' * 25}{{SUBSTR(10000000 + n, 2)}}"),
    )
    let_plan(AuditRecord)


def newest(count, *arguments):
    """Return what reads the newest ``count`` records."""
    return lambda: searched("--limit", str(count), *arguments)


SEARCHES = [
    (["--actor", "actor7"], "audit_actor"),
    (["--action", "action7"], "audit_action"),
    (["--target", "type2/7"], "audit_target"),
    (["--target", "7"], "audit_target"),
    (["--run", "0" * 31 + "7"], "audit_run"),
    (["--since", "2026-01-20", "--until", "2026-01-21"], "audit_at"),
    (["--since", "2026-01-20"], "audit_at"),
    (["--until", "2026-01-20"], "audit_at"),
    (["--actor", "actor7", "--text", "no"], "audit_actor"),
    (["--since", "2026-01-20", "--until", "2026-01-21", "--text", "no"], "audit_at"),
]


def test_each_search_goes_by_an_index_newest_first(records):
    for arguments, index in SEARCHES:
        for plan in plans_of(newest(FEW, *arguments), AuditRecord._meta.db_table):
            assert plan.indexes == {index}, (arguments, plan)
            assert not plan.sorts, (arguments, plan)
            assert not plan.scans, (arguments, plan)
        assert reads_at_most(500, newest(FEW, *arguments)), arguments


def test_search_without_a_filter_reads_the_newest_alone(records):
    for plan in plans_of(newest(FEW), AuditRecord._meta.db_table):
        assert not plan.sorts, plan
    assert reads_at_most(500, newest(FEW))


def test_command_alone_exits_2_with_one_line(manage):
    done = manage("audit")
    assert (done.returncode, done.stdout) == (2, "")
    (only,) = [it for it in done.stderr.splitlines() if it and not it.startswith("{")]
    assert only.startswith("UsageError: audit: say what to do; audit search")
