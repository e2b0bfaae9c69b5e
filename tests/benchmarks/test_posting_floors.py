"""The floors of posting do the same work as the product: else a ratio to them says nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import database, entries, floor, serverside
from ledger.models import Account, OutboxEntry, Posting, Transaction
from tests.ledger.entries import assert_books_balance, drain
from tests.processes import database_url

COUNT = 60


def stored() -> dict[str, list[Any]]:
    """Return all that posting writes, but its times."""
    return {
        "accounts": list(Account.objects.order_by("code").values_list("code", "balance")),
        "transactions": list(
            Transaction.objects.order_by("id").values_list(
                "id", "event_key", "event_type", "content_hash"
            )
        ),
        "postings": list(
            Posting.objects.order_by("transaction", "line").values_list(
                "transaction", "line", "account__code", "account__unit", "quantity"
            )
        ),
        "entries": list(
            OutboxEntry.objects.order_by("id").values_list(
                "id", "status", "attempts", "last_error_code", "last_error"
            )
        ),
    }


def posted_by(post: Callable[[], object]) -> dict[str, list[Any]]:
    """Return what is stored once ``post`` has posted the same entries as everyone."""
    database.empty()
    entries.make_accounts()
    entries.store(COUNT, label="same")
    post()
    entry = OutboxEntry.objects.first()
    assert entry is not None
    assert entry.posted_at is not None
    assert_books_balance()
    return stored()


@pytest.mark.mariadb
@pytest.mark.redis
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("limit", [floor.drain, serverside.drain])
def test_floor_stores_exactly_what_the_product_stores(limit: Callable[[str], int], monkeypatch):
    monkeypatch.setattr(floor, "BATCH", 25)
    monkeypatch.setattr(serverside, "BATCH", 25)
    expected = posted_by(lambda: drain(25))
    counts: list[int] = []
    assert posted_by(lambda: counts.append(limit(database_url()))) == expected
    assert counts == [COUNT]


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("limit", [floor.drain, serverside.drain])
def test_floor_ends_where_nothing_is_due(limit: Callable[[str], int]):
    assert limit(database_url()) == 0


@pytest.mark.django_db(transaction=True)
def test_every_tenth_entry_is_refused_for_three_reasons():
    entries.make_accounts()
    entries.store(COUNT, bad=True)
    result = drain(rounds=2)
    assert len(result.posted) == COUNT - COUNT // 10
    assert {it.code.value for it in result.failures.values()} == {
        "unbalanced",
        "account_closed",
        "insufficient_balance",
    }


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_templates_are_published_with_fresh_keys():
    entries.make_templates(20)
    entries.make_accounts()
    for bad in (False, True):
        entries.copy_templates(bad=bad)
        assert OutboxEntry.objects.due().count() == 20
        assert len(drain().posted) == (18 if bad else 20)
    entries.copy_templates(limit=3)
    assert OutboxEntry.objects.pending().count() == 3


def test_deliveries_are_the_same_in_every_run():
    assert entries.delivery(5) == entries.delivery(5)
    sizes = {len(entries.delivery(number)) for number in range(50)}
    assert sizes == {3, 4, 5}
