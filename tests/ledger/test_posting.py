"""Posting: good entries move stock once, bad ones move nothing and say why."""

from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest
from django.db import DatabaseError, connection
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from ledger import judging, metrics, poison
from ledger.models import Account, EntryStatus, OutboxEntry, Posting, Transaction
from ledger.outbox import content_hash
from ledger.payloads import RefusedError
from ledger.posting import post_due, post_these
from recovery.backoff import delay_sec
from recovery.clock import db_now
from recovery.fields import InexactQuantityError, storable_quantity
from recovery.metrics import collect
from recovery.models import AppendOnlyError, AuditRecord
from tests.ledger.entries import (
    WORLD,
    assert_books_balance,
    balance,
    drain,
    fresh,
    into,
    junk,
    lines,
    make_due,
    policy,
    put,
    refusing,
    state,
    store,
)

pytestmark = pytest.mark.django_db


def test_posted_entry_moves_stock_under_its_own_id():
    entry = put("k", into("OAK", "10.5"))
    before = db_now()
    result = drain()
    assert [it.id for it in result.posted] == [entry.pk]
    found = Transaction.objects.get()
    assert (found.pk, found.event_key, found.event_type) == (entry.pk, "k", "test")
    assert found.content_hash == entry.content_hash
    rows = found.postings.values_list("line", "account__code", "account__unit", "quantity")
    assert list(rows) == [
        (1, "stock:OAK", "m2", Decimal("10.5")),
        (2, WORLD, "m2", Decimal("-10.5")),
    ]
    assert balance("stock:OAK") == Decimal("10.5")
    assert balance(WORLD) == Decimal("-10.5")
    now = fresh(entry)
    assert (now.status, now.attempts) == ("posted", 0)
    assert before <= now.posted_at <= db_now()
    assert found.posted_at == now.posted_at
    assert_books_balance()


def test_batch_is_dated_at_its_end_not_at_its_begin(settings):
    put("k", into("OAK", "1"))
    drain()
    put("l", into("OAK", "1"))
    begun = db_now()
    settings.RECOVERY_FAULTPOINTS = "outbox.before_commit=sleep:0.3"
    result = post_due(policy(), limit=10)
    assert len(result.posted) == 1
    assert result.at >= begun + timedelta(seconds=0.3)


def test_only_accounts_of_the_world_may_go_below_zero():
    put("k", into("OAK", "1"))
    drain()
    assert dict(Account.objects.values_list("code", "allow_negative")) == {
        "stock:OAK": False,
        WORLD: True,
    }


def test_one_code_in_two_units_is_two_accounts():
    put("a", into("OAK", "1"))
    put("b", lines(("stock:OAK", "2"), (WORLD, "-2"), unit="kg"))
    drain()
    assert (balance("stock:OAK"), balance("stock:OAK", "kg")) == (1, 2)
    assert_books_balance()


def test_accounts_that_differ_in_case_or_accent_are_apart():
    for sku in ("Ä", "A", "a", "ä"):
        put(sku, into(sku, "1"))
    drain()
    assert Account.objects.filter(code__startswith="stock:", balance=1).count() == 4


def test_batches_share_their_accounts():
    for n in range(25):
        put(f"k{n}", into(f"SKU-{n % 3}", "0.1"))
    result = drain(limit=10)
    assert len(result.posted) == 25
    assert balance(WORLD) == Decimal("-2.5")
    assert_books_balance()


def test_batch_of_one_entry_at_a_time_ends():
    for n in range(3):
        put(f"k{n}", into("OAK", "1"), aggregate="lot:B")
    assert len(drain(limit=1).posted) == 3


def test_entry_that_is_not_due_waits():
    entry = put("k", into("OAK", "1"))
    OutboxEntry.objects.update(next_attempt_at=db_now() + timedelta(seconds=60))
    assert not drain().claimed
    assert state(entry) == ("pending", 0, "")


def test_entry_that_came_due_is_posted():
    entry = put("k", into("OAK", "1"))
    make_due()
    drain()
    assert state(entry) == ("posted", 0, "")


@pytest.mark.parametrize("status", [EntryStatus.DEAD, EntryStatus.DISCARDED, EntryStatus.POSTED])
def test_only_pending_entries_are_posted(status):
    put("k", into("OAK", "1"))
    OutboxEntry.objects.update(status=status)
    assert not drain().claimed
    assert not Transaction.objects.exists()


def test_earlier_entry_of_the_batch_fills_the_stock_of_a_later_one():
    put("in", into("OAK", "10"))
    put("out", into("OAK", "-10"))
    assert len(drain().posted) == 2
    assert balance("stock:OAK") == 0
    assert_books_balance()


# What is refused


def refused(entry, code, **changes):
    result = drain(**changes)
    assert {pk: error.code for pk, error in result.failures.items()} == {entry.pk: code}
    now = fresh(entry)
    assert (now.status, now.attempts, now.last_error_code) == ("pending", 1, code)
    assert now.last_error
    assert now.posted_at is None
    assert not Transaction.objects.filter(event_key=entry.event_key).exists()
    assert_books_balance()
    return now


def test_unbalanced_entry_is_refused():
    entry = put("k", lines(("stock:OAK", "10"), (WORLD, "-9.999999")))
    assert "0.000001 m2" in refused(entry, "unbalanced").last_error
    assert balance("stock:OAK") == 0


@pytest.mark.parametrize(
    "payload",
    [
        [],
        "text",
        {"schema_version": True, "postings": []},
        {"schema_version": 1},
        {"schema_version": 1, "postings": [{"account": "a", "quantity": 1.5, "unit": "m2"}] * 2},
        {"schema_version": 1, "postings": [{"account": " a", "quantity": "0", "unit": "m2"}] * 2},
        {"schema_version": 1, "postings": [[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]], 1]},
        {"😀": "𠮷"},
    ],
    ids=repr,
)
def test_malformed_entry_is_refused_and_its_neighbour_posted(payload):
    entry = junk("k", payload)
    put("good", into("OAK", "1"))
    refused(entry, "payload_invalid")
    assert balance("stock:OAK") == 1


@pytest.mark.sqlite
def test_payload_as_deep_as_the_database_lets_in_is_refused():
    entry = junk("k", {})
    nested = "[" * 990 + "]" * 990
    text = f'{{"schema_version": 1, "postings": [{nested}, {nested}]}}'
    with connection.cursor() as cursor:
        cursor.execute("UPDATE ledger_outboxentry SET payload = %s", [text])
    drain()
    assert state(entry) == ("pending", 1, "payload_invalid")


def test_closed_account_takes_no_postings():
    put("k1", into("OAK", "10"))
    drain()
    Account.objects.filter(code="stock:OAK").close()
    entry = put("k2", into("OAK", "1"))
    assert "stock:OAK [m2] is closed" in refused(entry, "account_closed").last_error
    assert balance("stock:OAK") == 10


def test_closed_account_takes_no_postings_that_cancel_out():
    put("k1", into("OAK", "10"))
    drain()
    Account.objects.filter(code="stock:OAK").close()
    entry = put("k2", lines(("stock:OAK", "1"), ("stock:OAK", "-1")))
    refused(entry, "account_closed")


def test_stock_does_not_go_below_zero():
    put("in", into("OAK", "10"))
    put("exact", into("OAK", "-10"))
    entry = put("more", into("OAK", "-0.000001"))
    text = refused(entry, "insufficient_balance").last_error
    assert "stock:OAK [m2] holds 0.000000" in text
    assert "-0.000001" in text


def test_stock_is_judged_after_the_whole_entry():
    put("k", lines(("stock:OAK", "-5"), ("stock:OAK", "5")))
    assert len(drain().posted) == 1
    assert Posting.objects.count() == 2
    assert_books_balance()


def test_refused_entry_moves_none_of_its_accounts():
    put("in", into("OAK", "1"))
    drain()
    entry = put("k", lines(("stock:ASH", "5"), ("stock:OAK", "-5")))
    refused(entry, "insufficient_balance")
    assert (balance("stock:ASH"), balance("stock:OAK")) == (0, 1)


def test_refused_entry_leaves_nothing_for_the_next_one():
    entry = put("k1", lines(("stock:ASH", "5"), ("stock:OAK", "-5")))
    other = put("k2", into("ASH", "-5"))
    result = drain()
    assert {error.code for error in result.failures.values()} == {"insufficient_balance"}
    assert set(result.failures) == {entry.pk, other.pk}


def test_stock_already_below_zero_may_rise():
    put("k", into("OAK", "1"))
    drain()
    Account.objects.filter(code="stock:OAK").update(balance=-10)
    entry = put("up", into("OAK", "3"))
    post_due(policy(), limit=10)
    assert state(entry)[0] == "posted"
    assert balance("stock:OAK") == -7


def test_key_that_was_posted_with_other_content_is_refused():
    put("k", into("OAK", "1"))
    drain()
    OutboxEntry.objects.all().delete()
    entry = junk("k", {"schema_version": 1, "postings": "other"})
    result = drain()
    assert [error.code for error in result.failures.values()] == ["key_conflict"]
    assert state(entry) == ("pending", 1, "key_conflict")
    assert balance("stock:OAK") == 1


def test_key_that_was_posted_with_the_same_content_moves_nothing():
    first = put("k", into("OAK", "1"))
    drain()
    OutboxEntry.objects.all().delete()
    again = put("k", into("OAK", "1"))
    result = drain()
    assert [it.id for it in result.duplicates] == [again.pk]
    assert state(again) == ("posted", 0, "")
    assert Transaction.objects.get().pk == first.pk != again.pk
    assert balance("stock:OAK") == 1


def test_unexpected_error_charges_its_entry_alone(settings):
    settings.RECOVERY_FAULTPOINTS = "outbox.entry:bad=raise"
    entry = put("bad:1", into("OAK", "1"))
    other = put("good:1", into("OAK", "2"))
    now = refused(entry, "unexpected")
    settings.RECOVERY_FAULTPOINTS = ""
    assert "InjectedFaultError" in now.last_error
    assert state(other) == ("posted", 0, "")
    assert balance("stock:OAK") == 2


def test_balance_that_cannot_be_kept_is_refused():
    largest = "999999999.999999" if connection.vendor == "sqlite" else "999999999999999999.999999"
    put("k1", into("OAK", largest))
    if connection.vendor == "sqlite":
        put("k2", into("OAK", "9000000000"))
    else:
        put("k2", into("OAK", largest))
    result = drain()
    assert [error.code for error in result.failures.values()] == ["unexpected"]
    assert balance("stock:OAK") == Decimal(largest)


@pytest.mark.parametrize("vendor", ["mysql", "sqlite"])
@given(
    balance=st.one_of(
        st.decimals(-2 * judging.KEPT_BY_ALL, 2 * judging.KEPT_BY_ALL, places=6),
        st.integers(-5, 5).map(lambda n: judging.KEPT_BY_ALL + n * Decimal("0.000001")),
        st.integers(-5, 5).map(lambda n: -judging.KEPT_BY_ALL + n * Decimal("0.000001")),
    )
)
def test_small_balances_are_kept_without_looking_as_if_looked_at(vendor, balance):
    def kept(look):
        try:
            return look()
        except (InexactQuantityError, RefusedError):
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "connection", SimpleNamespace(vendor=vendor))
        found = kept(lambda: judging._storable(("stock:OAK", "m2"), balance))
    wanted = kept(lambda: storable_quantity(balance, vendor))
    assert found == wanted
    assert str(found) == str(wanted)


def test_balance_of_a_small_account_is_not_looked_at_digit_by_digit(monkeypatch):
    looked = []
    monkeypatch.setattr(judging, "storable_quantity", lambda *found: looked.append(found))
    put("k", into("OAK", "1"))
    drain()
    assert not looked


def test_tenths_add_up_exactly():
    for n, quantity in enumerate(["0.1", "0.2", "-0.3", "0.000001"]):
        put(f"k{n}", into("OAK", quantity))
    drain()
    assert balance("stock:OAK") == Decimal("0.000001")
    assert_books_balance()


def test_many_accounts_in_one_batch_are_all_stored():
    content = lines(*((f"stock:S{n}", "0.1") for n in range(1_200)), (WORLD, "-120"))
    put("k", content)
    drain()
    assert Account.objects.filter(balance=Decimal("0.1")).count() == 1_200
    assert_books_balance()


def test_ledger_rows_cannot_be_changed_or_removed():
    put("k", into("OAK", "1"))
    drain()
    for row in (Transaction.objects.get(), Posting.objects.first()):
        with pytest.raises(AppendOnlyError):
            row.save()
        with pytest.raises(AppendOnlyError):
            row.delete()
        with pytest.raises(AppendOnlyError):
            type(row).objects.all().delete()
        with pytest.raises(AppendOnlyError):
            type(row).objects.update(id=0)


# Attempts


def test_backoff_is_the_formula_exactly_until_the_entry_is_dead(settings):
    settings.JOB_BACKOFF_BASE_SEC, settings.JOB_BACKOFF_CAP_SEC = 500, 3_000
    entry = put("k", into("OAK", "-1"))
    for attempt, delay_s in enumerate([500, 1_000, 2_000, 3_000, 3_000], start=1):
        assert delay_s == delay_sec(attempt)
        before = db_now()
        drain(max_attempts=6)
        now = fresh(entry)
        assert (now.status, now.attempts) == ("pending", attempt)
        delay = timedelta(seconds=delay_s)
        assert before + delay <= now.next_attempt_at <= db_now() + delay
        make_due()
    drain(max_attempts=6)
    assert state(entry) == ("dead", 6, "insufficient_balance")


def test_entry_is_dead_at_its_last_attempt_and_audited():
    entry = put("k", into("OAK", "-1"))
    OutboxEntry.objects.update(attempts=1)
    drain()
    assert state(entry) == ("pending", 2, "insufficient_balance")
    assert not AuditRecord.objects.exists()
    make_due()
    result = drain()
    assert result.dead == [entry.pk]
    assert state(entry) == ("dead", 3, "insufficient_balance")
    record = AuditRecord.objects.get()
    assert (record.action, record.actor) == ("outbox-entry-dead", "system:test")
    assert (record.target_type, record.target_id) == ("outbox-entry", str(entry.pk))
    assert record.before == {"status": "pending", "attempts": 2}
    assert record.after == {"status": "dead", "attempts": 3}
    assert record.evidence["event_key"] == "k"
    assert record.evidence["code"] == "insufficient_balance"
    assert "stock:OAK" in record.evidence["error"]
    make_due()
    assert not drain().claimed


def test_entry_that_failed_before_is_posted_when_it_can_be():
    entry = put("out", into("OAK", "-1"))
    drain()
    put("in", into("OAK", "1"))
    drain()
    make_due()
    drain()
    now = fresh(entry)
    assert (now.status, now.attempts) == ("posted", 1)
    assert (now.last_error_code, now.last_error) == ("", "")
    assert_books_balance()


@pytest.mark.django_db(transaction=True)
def test_without_its_audit_record_no_entry_dies_and_the_others_are_posted():
    dying = put("dying", into("OAK", "-1"))
    OutboxEntry.objects.update(attempts=2)
    others = [put(f"k{n}", into("ASH", "1")) for n in range(5)]
    before = fresh(dying)
    with refusing("recovery_auditrecord", "NEW.action = 'outbox-entry-dead'"):
        result = post_due(policy(), limit=10)
        assert len(result.errors) == 1
        now = fresh(dying)
        assert (now.status, now.attempts, now.last_error) == ("pending", 2, "")
        assert now.next_attempt_at == before.next_attempt_at
        assert {state(it)[0] for it in others} == {"posted"}
    drain()
    assert state(dying) == ("dead", 3, "insufficient_balance")
    assert AuditRecord.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("bad", [1, 3])
def test_what_only_the_database_refuses_is_isolated_and_the_rest_posted(bad):
    entries = [put(f"k{n}", into("OAK", "13" if n < bad else "1")) for n in range(20)]
    with refusing("ledger_posting", "NEW.quantity = 13"):
        result = post_due(policy(), limit=100)
        assert result.claimed == 20
        assert sorted(result.failures) == [it.pk for it in entries[:bad]]
    for it in entries[:bad]:
        assert state(it) == ("pending", 1, "unexpected")
        assert "not this one" in fresh(it).last_error
    assert {state(it) for it in entries[bad:]} == {("posted", 0, "")}
    assert balance("stock:OAK") == 20 - bad
    assert_books_balance()


@pytest.mark.django_db(transaction=True)
def test_entry_that_the_database_refuses_ends_dead():
    entry = put("k", into("OAK", "13"))
    with refusing("ledger_posting", "NEW.quantity = 13"):
        for _ in range(3):
            drain()
            make_due()
    assert state(entry) == ("dead", 3, "unexpected")


@contextmanager
def without(table):
    """Let ``table`` be missing, as before a migration."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
        try:
            yield
        finally:
            cursor.execute(f"ALTER TABLE {table}_away RENAME TO {table}")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("table", ["ledger_posting", "ledger_transaction", "recovery_auditrecord"])
def test_broken_schema_fails_the_run_and_charges_nobody(table):
    entries = [put(f"k{n}", into("OAK", "1")) for n in range(8)]
    dying = put("dying", into("ASH", "-1"))
    with without(table), pytest.raises(DatabaseError):
        post_due(policy(max_attempts=1), limit=10)
    assert {state(it) for it in (*entries, dying)} == {("pending", 0, "")}
    drain(max_attempts=1)
    assert {state(it)[0] for it in entries} == {"posted"}
    assert state(dying) == ("dead", 1, "insufficient_balance")


@pytest.mark.django_db(transaction=True)
def test_broken_schema_charges_nobody_under_care():
    entry = put("k", into("OAK", "1"))
    with without("ledger_posting"), pytest.raises(DatabaseError):
        poison.post_with_care(policy(max_attempts=1), entry.pk)
    assert state(entry) == ("pending", 0, "")
    assert len(drain().posted) == 1


# Versions


def test_unknown_version_stays_pending_untouched_for_newer_code():
    entry = junk("k", {"schema_version": 2, "anything": 1})
    before = db_now()
    result = drain()
    assert result.postponed == [entry.pk]
    now = fresh(entry)
    assert (now.status, now.attempts, now.last_error) == ("pending", 0, "")
    minute = timedelta(seconds=60)
    assert before + minute <= now.next_attempt_at <= db_now() + minute


def test_unknown_version_holds_its_successors_and_nobody_else():
    entry = junk("k1", {"schema_version": 2}, aggregate="lot:B")
    follower = put("k2", into("OAK", "1"), aggregate="lot:B")
    other = put("k3", into("OAK", "1"))
    drain()
    assert [state(it)[:2] for it in (entry, follower, other)] == [
        ("pending", 0),
        ("pending", 0),
        ("posted", 0),
    ]
    assert fresh(follower).next_attempt_at == fresh(entry).next_attempt_at


def test_many_unknown_versions_at_the_head_let_the_others_pass():
    store((f"new{n}", f"lot:N{n}", {"schema_version": 9}) for n in range(500))
    put("k", into("OAK", "1"))
    result = drain(rounds=5)
    assert (len(result.postponed), len(result.posted)) == (500, 1)


# What is counted


def sample(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_counters_follow_what_was_done():
    store([("good", "lot:1", into("OAK", "1")), ("bad", "lot:2", into("ASH", "-1"))])
    before = (
        sample("outbox_posted_total"),
        sample("outbox_failures_total", code="insufficient_balance"),
        sample("outbox_post_latency_seconds_count"),
    )
    metrics.count(drain())
    after = (
        sample("outbox_posted_total"),
        sample("outbox_failures_total", code="insufficient_balance"),
        sample("outbox_post_latency_seconds_count"),
    )
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]


def test_latency_runs_from_publishing_to_posting():
    put("k", into("OAK", "1"))
    OutboxEntry.objects.update(created_at=db_now() - timedelta(hours=1))
    before = sample("outbox_post_latency_seconds_sum")
    metrics.count(drain())
    assert 3_600 <= sample("outbox_post_latency_seconds_sum") - before < 4_000


def test_nothing_is_counted_without_metrics(settings):
    settings.METRICS_ENABLED = False
    put("k", into("OAK", "1"))
    before = sample("outbox_posted_total")
    metrics.count(drain())
    assert sample("outbox_posted_total") == before


def gauges():
    return {(row.name, row.labels): row.value for row in collect() if row.name.startswith("outbox")}


def test_gauges_show_what_is_not_posted():
    assert gauges()["outbox_oldest_pending_age_seconds", ""] == 0
    rows = store((f"k{n}", f"lot:{n}", into("OAK", "1")) for n in range(6))
    for row, status in zip(rows, ("posted", "dead", "dead", "discarded"), strict=False):
        OutboxEntry.objects.filter(pk=row.pk).update(status=status)
    OutboxEntry.objects.filter(pk=rows[0].pk).update(created_at=db_now() - timedelta(days=1))
    OutboxEntry.objects.filter(pk=rows[4].pk).update(created_at=db_now() - timedelta(hours=1))
    found = gauges()
    assert found["outbox_entries", '{"status": "pending"}'] == 2
    assert found["outbox_entries", '{"status": "dead"}'] == 2
    assert found["outbox_entries", '{"status": "discarded"}'] == 1
    assert ("outbox_entries", '{"status": "posted"}') not in found
    assert 3_600 <= found["outbox_oldest_pending_age_seconds", ""] < 4_000


def test_age_of_what_is_due_leaves_out_what_waits_for_its_next_attempt():
    assert gauges()["outbox_oldest_due_age_seconds", ""] == 0
    old = put("k", into("OAK", "1"))
    due_at = db_now() + timedelta(minutes=15)
    OutboxEntry.objects.update(created_at=db_now() - timedelta(hours=1), next_attempt_at=due_at)
    assert gauges()["outbox_oldest_due_age_seconds", ""] == 0
    OutboxEntry.objects.filter(pk=old.pk).update(next_attempt_at=db_now() - timedelta(minutes=9))
    assert 540 <= gauges()["outbox_oldest_due_age_seconds", ""] < 900


def test_counts_name_what_happened_only():
    put("k", into("OAK", "1"))
    assert drain().counts() == {"posted": 1}


def test_given_entries_are_posted_though_not_due():
    entry, other = (put(key, into("OAK", "1")) for key in ("a", "b"))
    OutboxEntry.objects.update(next_attempt_at=db_now() + timedelta(days=1))
    assert len(post_these(policy(), [entry.pk]).posted) == 1
    assert (state(entry)[0], state(other)[0]) == ("posted", "pending")


def test_hash_of_an_entry_is_that_of_its_content():
    entry = fresh(put("k", into("OAK", "1")))
    drain()
    wanted = content_hash(entry.event_type, entry.aggregate, entry.payload)
    assert Transaction.objects.get().content_hash == wanted
