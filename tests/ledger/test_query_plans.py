"""Every hot statement has its index, and a crowded aggregate is not read through."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ledger import parking, rows
from ledger.models import EntryStatus, OutboxEntry, Transaction
from ledger.posting import post_due
from recovery.clock import db_now
from tests.ledger.entries import drain, into, junk, policy, put, store
from tests.ledger.test_volume import crowd

pytestmark = pytest.mark.django_db(transaction=True)  # ANALYZE commits

CROWD = 20_000


@pytest.fixture
def crowded():
    """Return the head of a crowded aggregate, among a thousand entries of others."""
    head = put("head", into("OAK", "-1"), aggregate="lot:HOT")
    crowd(head, CROWD)
    store((f"k{n}", f"lot:{n // 2}", into("ASH", "1")) for n in range(1_000))
    analyze()
    return head


def analyze() -> None:
    """Let the database count what there is."""
    word = "ANALYZE" if connection.vendor == "sqlite" else "ANALYZE TABLE"
    with connection.cursor() as cursor:
        for table in (rows.ENTRY, Transaction._meta.db_table):
            cursor.execute(f"{word} {table}")
            cursor.fetchall()


def explain(sql: str, parameters: Iterable[Any] = ()) -> list[dict[str, Any]]:
    """Return the database's plan as a list of its steps."""
    word = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
    with connection.cursor() as cursor:
        cursor.execute(f"{word} {sql}", list(parameters))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def index_of(step: dict[str, Any]) -> str:
    """Return the index one step of a plan uses."""
    if connection.vendor == "sqlite":
        return step["detail"].partition(" INDEX ")[2].split(" ")[0]
    return step["key"] or ""


def rows_read(action) -> int:
    """Return how many rows the server reads for ``action`` (MariaDB)."""

    def total() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%%'", [])
            return sum(int(value) for _, value in cursor.fetchall())

    before = total()
    action()
    middle = total()
    return (middle - before) - (total() - middle)


def claimed(*keys):
    ids = OutboxEntry.objects.filter(event_key__in=keys).values_list("pk", flat=True)
    return rows.claim_these(list(ids))


def test_claim_reads_its_index_in_order(crowded):
    steps = explain(rows.claim_sql(), [500])
    assert len(steps) == 1
    assert index_of(steps[0]) == "outbox_claim"
    text = str(steps[0]).lower()
    assert "filesort" not in text
    assert "temp b-tree" not in text
    assert "scan" not in text


@pytest.mark.mariadb
@pytest.mark.parametrize("limit", [1, 50, 500])
def test_claim_reads_no_more_rows_than_it_takes(crowded, limit):
    read = rows_read(lambda: rows.claim(limit))
    assert read <= 2 * limit + 10


@pytest.mark.mariadb
def test_claim_passes_by_what_is_not_due(crowded):
    later = OutboxEntry.objects.filter(aggregate="lot:HOT")
    later.update(next_attempt_at=db_now() + timedelta(days=365))
    assert rows_read(lambda: rows.claim(500)) <= 1_010


def test_standing_of_an_aggregate_is_a_few_seeks(crowded):
    steps = explain(rows.standings_sql([crowded.pk], 3).replace("%", "%%"))
    inner = [step for step in steps if "p" in (step.get("table"), str(step.get("detail"))[7:8])]
    assert len(inner) == 3
    assert {index_of(step) for step in inner} == {"outbox_aggregate"}
    assert "filesort" not in str(steps)
    assert "TEMP B-TREE" not in str(steps)


@pytest.mark.mariadb
def test_crowded_aggregate_is_not_read_through_for_its_barrier(crowded):
    last = claimed(f"f{CROWD - 1}", "k0", "k1", "k2")
    assert rows_read(lambda: parking.barriers(last)) < 60
    first = claimed("head", *(f"f{n}" for n in range(100)))
    found = []
    assert rows_read(lambda: found.append(parking.barriers(first))) < 600
    assert found == [{}]
    gap = claimed("head", f"f{CROWD - 1}")
    assert rows_read(lambda: parking.barriers(gap)) < 60


@pytest.mark.mariadb
def test_batch_beside_a_crowded_dead_aggregate_reads_little(crowded):
    OutboxEntry.objects.filter(pk=crowded.pk).update(status=EntryStatus.DEAD)
    assert post_due(policy(), limit=500).parked == CROWD
    results = []
    read = rows_read(lambda: results.append(post_due(policy(), limit=500)))
    assert len(results[0].posted) == 500
    assert read < 500 * 30


def plans_of(action, word):
    """Return the plans of the statements of ``action`` that hold ``word``."""
    with CaptureQueriesContext(connection) as queries:
        action()
    found = [it["sql"] for it in queries if word in it["sql"] and it["sql"][:6] != "INSERT"]
    assert found
    return [explain(sql.replace("%", "%%")) for sql in found]


def test_keys_posted_before_are_found_by_their_index(crowded):
    drain()
    analyze()
    ids = list(OutboxEntry.objects.filter(event_key__startswith="k").values_list("pk", flat=True))
    for plan in plans_of(lambda: rows.posted_before(ids[:20]), "content_hash ="):
        first, second = plan[-2:]
        assert index_of(first) in {"PRIMARY", "INTEGER"} or "PRIMARY KEY" in first["detail"], plan
        assert "event_key" in index_of(second) or "autoindex" in index_of(second), plan


def test_parking_and_release_go_by_the_aggregate(crowded):
    def park():
        parking.park_all_behind(crowded.pk, cap_s=60)

    OutboxEntry.objects.filter(pk=crowded.pk).update(status=EntryStatus.DEAD)
    for plan in plans_of(park, "aggregate"):
        assert index_of(plan[0]) in {"outbox_aggregate", "PRIMARY", ""}, plan
        assert "ALL" not in {step.get("type") for step in plan}
    (count, *_) = plans_of(lambda: parking.release(["lot:1", "lot:2"]), "aggregate")
    assert index_of(count[0]) == "outbox_aggregate", count


def test_oldest_pending_entry_is_found_by_its_index(crowded):
    from ledger import metrics

    for plan in plans_of(metrics.outbox_oldest_pending_age_seconds, "MIN("):
        text = str(plan)
        assert "outbox_status_age" in text or "optimized away" in text
    if connection.vendor == "mysql":
        assert rows_read(metrics.outbox_oldest_pending_age_seconds) < 10


def test_entry_due_the_longest_is_found_by_its_index(crowded):
    from ledger import metrics

    for plan in plans_of(metrics.outbox_oldest_due_age_seconds, "MIN("):
        text = str(plan)
        assert "outbox_claim" in text or "optimized away" in text
    if connection.vendor == "mysql":
        assert rows_read(metrics.outbox_oldest_due_age_seconds) < 10


def test_gauges_do_not_read_what_is_posted(crowded):
    from ledger import metrics

    drain(limit=500, rounds=200)
    OutboxEntry.objects.filter(status="pending").delete()
    for plan in plans_of(metrics.outbox_entries, "COUNT("):
        assert index_of(plan[0]).startswith("outbox_")


def test_entries_are_parked_and_released_by_their_ids_alone(crowded):
    """By status too, an UPDATE may go through an index of entries that others have locked."""
    junk("newer", {"schema_version": 2})
    OutboxEntry.objects.filter(event_key__in=["k1", "k3"]).update(status=EntryStatus.DEAD)
    with CaptureQueriesContext(connection) as queries:
        while post_due(policy(), limit=500).progressed():
            pass
        parking.release(["lot:0", "lot:1"])
    named = tuple(f"UPDATE {it}{rows.ENTRY}{it}" for it in ("", "`", '"'))
    updates = [it["sql"] for it in queries if it["sql"].startswith(named)]
    conditions = [sql.partition(" WHERE ")[2] for sql in updates]
    assert len(conditions) > 3
    assert not [text for text in conditions if "status" in text]
