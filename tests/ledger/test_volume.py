"""Many entries: only the bad ones fail, a hundred thousand parked ones cost nobody anything."""

import random
from collections import Counter
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ledger.models import Account, OutboxEntry, Posting, Transaction
from ledger.posting import post_due
from tests.ledger.entries import (
    WORLD,
    assert_books_balance,
    balance,
    drain,
    into,
    junk,
    lines,
    make_due,
    policy,
    put,
    store,
)

pytestmark = pytest.mark.django_db

BAD = {
    "unbalanced": lambda n: lines((f"stock:S{n % 50}", "1"), (WORLD, "-2")),
    "account_closed": lambda _n: into("CLOSED", "1"),
    "insufficient_balance": lambda n: into(f"NEVER-{n % 50}", "-1"),
    "payload_invalid": lambda n: {"schema_version": 1, "postings": [n, n]},
}


@pytest.mark.parametrize("percent", [1, 10])
def test_of_ten_thousand_entries_exactly_the_bad_ones_fail(percent):
    put("close", into("CLOSED", "1"))
    drain()
    Account.objects.filter(code="stock:CLOSED").close()
    draw = random.Random(percent)
    bad = dict.fromkeys(draw.sample(range(10_000), 100 * percent), "")
    for n in bad:
        bad[n] = draw.choice(list(BAD))
    store(
        (f"k{n}", f"lot:{n}", BAD[bad[n]](n) if n in bad else into(f"S{n % 50}", "0.1"))
        for n in range(10_000)
    )
    result = drain(delay_sec=lambda _attempt: 1_800)
    keys = dict(OutboxEntry.objects.values_list("pk", "event_key"))
    failed = {keys[pk]: error.code.value for pk, error in result.failures.items()}
    assert failed == {f"k{n}": code for n, code in bad.items()}
    found = OutboxEntry.objects.values_list("status", "attempts", "last_error_code")
    assert Counter(found) == Counter(
        {("posted", 0, ""): 10_001 - len(bad)}
        | {("pending", 1, code): n for code, n in Counter(bad.values()).items()}
    )
    assert balance("stock:CLOSED") == 1
    assert -balance(WORLD) == 1 + (10_000 - len(bad)) * Decimal("0.1")
    assert_books_balance()


def crowd(head, count=100_000):
    """Store ``count`` followers of ``head``, due before everything published afterwards."""
    digits = "(SELECT 0 AS d" + "".join(f" UNION ALL SELECT {d}" for d in range(1, 10)) + ")"
    joined = ", ".join(f"{digits} AS t{power}" for power in range(5))
    number = " + ".join(f"t{power}.d * {10**power}" for power in range(5))
    text = "'f' || n" if connection.vendor == "sqlite" else "CONCAT('f', n)"
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ledger_outboxentry (event_key, event_type, aggregate, payload,"
            " content_hash, status, attempts, next_attempt_at, last_error_code, last_error,"
            f" created_at, traceparent) SELECT {text}, 'test', aggregate, payload, content_hash,"
            " 'pending', 0, next_attempt_at, '', '', created_at, ''"
            f" FROM ledger_outboxentry, (SELECT {number} AS n FROM {joined}) AS numbers"
            " WHERE id = %s AND n < %s",
            [head.pk, count],
        )


@pytest.mark.parametrize("dead", [True, False])
def test_a_hundred_thousand_followers_cost_the_others_two_batches(dead):
    head = put("head", into("OAK", "-1"), aggregate="lot:B")
    make_due()
    head.refresh_from_db()
    crowd(head)
    healthy = [(f"k{n}", f"lot:{n}", into("ASH", "1")) for n in range(1_000)]
    store(healthy)
    limits = policy(max_attempts=1 if dead else 3, delay_sec=lambda _attempt: 3_600)
    first = post_due(limits, limit=500)
    assert (list(first.failures), first.posted, first.parked) == ([head.pk], [], 100_000)
    with CaptureQueriesContext(connection) as queries:
        results = [post_due(limits, limit=500) for _ in range(3)]
    assert [len(it.posted) for it in results] == [500, 500, 0]
    assert results[-1].claimed == 0
    assert len(queries) < 60
    waiting = OutboxEntry.objects.filter(aggregate="lot:B").exclude(pk=head.pk)
    assert waiting.parked().count() == 100_000


def test_batch_takes_the_same_statements_however_many_entries():
    def statements(name, count):
        store((f"{name}{n}", f"lot:{name}{n}", into(f"S{n % 10}", "1")) for n in range(count))
        with CaptureQueriesContext(connection) as queries:
            assert len(post_due(policy(), limit=500).posted) == count
        return Counter(it["sql"].split()[0] for it in queries if not it["sql"][0].isdigit())

    statements("warm", 10)
    assert statements("few", 10) == statements("many", 400)


def test_no_statement_grows_beyond_what_servers_take():
    """MariaDB takes 16 MB unless told otherwise, many are told 1 MB."""
    for n in range(8):
        codes = [f"stock:{n:03d}-{line:04d}-{'木' * 60}" for line in range(750)]
        put(f"k{n}", lines(*((code, "1") for code in codes), (WORLD, "-750")))
    with CaptureQueriesContext(connection) as queries:
        assert len(drain().posted) == 8
    assert max(len(it["sql"].encode()) for it in queries) < 500_000
    assert Account.objects.count() == 6_001


def test_failing_heads_with_a_follower_each_are_parked_in_the_same_statements():
    def statements(name, count):
        for n in range(count):
            store([(f"{name}{n}", f"lot:{name}{n}", into("NONE", "-1")),
                   (f"{name}{n}f", f"lot:{name}{n}", into("ASH", "1"))])  # fmt: skip
        with CaptureQueriesContext(connection) as queries:
            result = post_due(policy(), limit=500)
        assert (len(result.failures), result.parked) == (count, count)
        return len(queries)

    statements("warm", 1)
    assert statements("few", 2) == statements("many", 40)


# Any movements at all

UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
AMOUNT = st.decimals("-50", "50", places=6).map(str)
MOVES = st.lists(
    st.tuples(st.sampled_from(["A", "B", "C"]), AMOUNT, st.sampled_from(["lot:1", "lot:2", ""])),
    min_size=1,
    max_size=25,
)


@pytest.fixture(scope="module")
def numbers():
    """Count examples: their keys and accounts are apart, so that they need no clean tables."""
    return iter(range(1_000_000))


@hypothesis_settings(max_examples=40, suppress_health_check=UNCHECKED)
@given(moves=MOVES, limit=st.integers(1, 30))
def test_no_stock_falls_below_zero_and_balances_are_the_sums(numbers, moves, limit):
    example = next(numbers)
    store(
        (f"{example}:{n}", f"{aggregate or n}:{example}", into(f"{example}-{sku}", quantity))
        for n, (sku, quantity, aggregate) in enumerate(moves)
    )
    drain(limit=limit)
    make_due()
    drain(limit=limit)
    assert_books_balance()
    posted = OutboxEntry.objects.filter(event_key__startswith=f"{example}:", status="posted")
    for sku in "ABC":
        wanted = sum(
            Decimal(it.payload["postings"][0]["quantity"])
            for it in posted
            if it.payload["postings"][0]["account"] == f"stock:{example}-{sku}"
        )
        assert balance(f"stock:{example}-{sku}") == wanted >= 0


def test_junk_of_any_kind_fails_alone():
    junk("bad", {"schema_version": 1, "postings": [{}, {}]})
    put("good", into("OAK", "1"))
    drain()
    assert Transaction.objects.count() == 1
    assert Posting.objects.count() == 2
