"""Publishing: once a key, in the business transaction, and the job is woken after the commit."""

from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from ledger.models import OutboxEntry
from ledger.outbox import (
    JOB,
    KeyConflictError,
    Line,
    PayloadTooLargeError,
    PublishOutsideTransactionError,
    content_hash,
    publish,
    quantity_text,
)
from recovery import wakeups
from recovery.fields import InexactQuantityError
from tests.ledger.entries import WORLD, Background, drain, fresh, into, lines, put, somebody_waits


@pytest.mark.django_db(transaction=True)
def test_publishing_outside_a_transaction_is_refused():
    with pytest.raises(PublishOutsideTransactionError, match="business change"):
        publish(event_key="k", event_type="t", aggregate="a", lines=into("OAK", "1"))
    assert not OutboxEntry.objects.exists()


@pytest.mark.django_db
def test_entry_says_what_is_to_be_posted():
    entry = fresh(put("k", into("OAK", "10.50"), aggregate="lot:B1", traceparent="00-ab-cd-01"))
    assert (entry.status, entry.attempts, entry.aggregate) == ("pending", 0, "lot:B1")
    assert entry.traceparent == "00-ab-cd-01"
    assert entry.payload == {
        "schema_version": 1,
        "postings": [
            {"account": "stock:OAK", "quantity": "10.5", "unit": "m2"},
            {"account": WORLD, "quantity": "-10.5", "unit": "m2"},
        ],
    }
    assert entry.content_hash == content_hash("test", "lot:B1", entry.payload)


@pytest.mark.django_db
def test_same_key_with_same_content_is_one_entry():
    first = put("k", into("OAK", "10"))
    again = put("k", into("OAK", "10.000"))
    assert again.pk == first.pk
    assert OutboxEntry.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    "change", [{"what": into("OAK", "11")}, {"aggregate": "lot:other"}, {"what": into("oak", "10")}]
)
def test_same_key_with_other_content_is_an_error(change):
    put("k", into("OAK", "10"))
    with pytest.raises(KeyConflictError, match="'k'"):
        put("k", change.get("what", into("OAK", "10")), aggregate=change.get("aggregate"))
    assert OutboxEntry.objects.count() == 1


@pytest.mark.django_db
def test_keys_that_differ_in_case_are_two_entries():
    assert put("k", into("OAK", "1")).pk != put("K", into("OAK", "1")).pk


@pytest.mark.django_db
def test_key_stands_for_its_content_after_retention_removed_the_entry():
    entry = put("k", into("OAK", "10"))
    drain()
    OutboxEntry.objects.filter(pk=entry.pk).delete()
    with pytest.raises(KeyConflictError):
        put("k", into("OAK", "11"))
    put("k", into("OAK", "10"))
    result = drain()
    assert (len(result.posted), len(result.duplicates)) == (0, 1)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.mariadb
def test_two_publish_one_key_at_once(eventually, same):
    def publish_other():
        return put("k", into("OAK", "10" if same else "11")).pk

    with transaction.atomic():
        first = publish(
            event_key="k", event_type="test", aggregate="lot:k", lines=into("OAK", "10")
        )
        other = Background(publish_other)
        eventually(somebody_waits)
    if same:
        assert other.result() == first.pk
    else:
        with pytest.raises(KeyConflictError):
            other.result()
    assert OutboxEntry.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.mariadb
def test_second_publisher_goes_in_if_the_first_rolls_back(eventually):
    with transaction.atomic():
        publish(event_key="k", event_type="test", aggregate="lot:k", lines=into("OAK", "10"))
        other = Background(lambda: put("k", into("OAK", "11")).pk)
        eventually(somebody_waits)
        transaction.set_rollback(True)
    assert other.result() == OutboxEntry.objects.get().pk


@pytest.mark.django_db(transaction=True)
def test_rollback_of_the_business_change_takes_the_entry_along():
    def business():
        with transaction.atomic():
            put("k", into("OAK", "10"))
            raise IntegrityError("the business changed its mind")

    with pytest.raises(IntegrityError):
        business()
    assert not OutboxEntry.objects.exists()
    assert not wakeups.pending(JOB)


@pytest.mark.django_db(transaction=True)
def test_job_is_woken_by_the_commit_and_not_before():
    with transaction.atomic():
        put("k", into("OAK", "10"))
        assert not wakeups.pending(JOB)
    assert wakeups.pending(JOB)


@pytest.mark.django_db
def test_payload_may_be_as_large_as_the_limit_and_no_larger(settings):
    line = {"account": WORLD, "quantity": "1", "unit": "m2"}
    settings.OUTBOX_MAX_PAYLOAD_BYTES = len(
        f'{{"postings":[{line}],"schema_version":1}}'.replace(" ", "")
    )
    put("fits", lines((WORLD, "1")))
    with pytest.raises(PayloadTooLargeError, match="too-long"):
        put("too-long", lines((WORLD, "11")))
    with pytest.raises(PayloadTooLargeError):  # bytes, not characters
        put("é", lines((WORLD[:-1] + "é", "1")))
    assert OutboxEntry.objects.get().event_key == "fits"


@pytest.mark.django_db
@pytest.mark.parametrize(
    "wrong",
    [
        {"event_key": " k"},
        {"event_key": ""},
        {"event_key": "k" * 191},
        {"event_key": "k\udcff"},
        {"aggregate": "a\n"},
        {"event_type": ""},
        {"event_type": "t" * 101},
        {"lines": [Line("stock:OAK ", Decimal(1), "m2")]},
        {"lines": [Line("stock:OAK", Decimal(1), "u" * 21)]},
        {"lines": [Line("stock:OAK", Decimal(1), "")]},
    ],
)
def test_what_cannot_be_a_key_is_refused(wrong):
    good = {"event_key": "k", "event_type": "t", "aggregate": "a", "lines": into("OAK", "1")}
    with pytest.raises(ValidationError):
        publish(**good | wrong)
    assert not OutboxEntry.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("quantity", ["0.0000001", "NaN", "Infinity", "1e19", "1e30"])
def test_quantity_that_cannot_be_kept_exactly_is_refused(quantity):
    with pytest.raises(InexactQuantityError):
        put("k", lines(("stock:OAK", quantity)))


@pytest.mark.django_db
@pytest.mark.sqlite
def test_sixteen_significant_digits_are_refused_where_decimals_are_floats():
    put("fits", lines(("stock:OAK", "123456789.012345")))
    with pytest.raises(InexactQuantityError):
        put("k", lines(("stock:OAK", "1234567890.012345")))


@pytest.mark.django_db
def test_overlong_trace_header_does_not_stop_the_business():
    assert fresh(put("k", into("OAK", "1"), traceparent="0" * 56)).traceparent == ""


def test_hash_does_not_depend_on_the_order_of_keys():
    assert content_hash("t", "a", {"x": 1, "y": [1, 2]}) == content_hash(
        "t", "a", {"y": [1, 2], "x": 1}
    )


def test_hash_depends_on_everything_else():
    hashes = {
        content_hash("t", "a", {"x": [1, 2]}),
        content_hash("T", "a", {"x": [1, 2]}),
        content_hash("t", "A", {"x": [1, 2]}),
        content_hash("t", "a", {"x": [2, 1]}),
        content_hash("t", "a", {"x": ["1", "2"]}),
    }
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("quantity", "text"),
    [("10.500", "10.5"), ("1E+3", "1000"), ("100", "100"), ("0.000001", "0.000001"), ("0.0", "0")],
)
def test_quantities_are_plain_text_without_superfluous_zeros(quantity, text):
    assert quantity_text(Decimal(quantity)) == text
