"""What a batch counts: each part at its commit; latencies together as they are one by one."""

import math

import prometheus_client.values
import pytest
from django.db import DataError, transaction
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.values import MultiProcessValue, MutexValue

from ledger import rows
from ledger.metrics import BatchHistogram
from ledger.models import Transaction
from ledger.posting import post_due
from recovery.leases import LeaseLostError
from tests.ledger.entries import into, policy, put

UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
BUCKETS = (0.05, 0.5, 1, 30)
AMOUNTS = st.lists(
    st.one_of(
        st.sampled_from([0.0, *map(float, BUCKETS), math.inf]),
        st.floats(0, 100, allow_nan=False),
    ),
    max_size=50,
)


@pytest.fixture(params=["one process", "several processes"])
def values(request, monkeypatch, tmp_path):
    """Keep values in memory, or in mapped files as where there are several processes."""
    kind = MutexValue
    if request.param == "several processes":
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        kind = MultiProcessValue()
    monkeypatch.setattr(prometheus_client.values, "ValueClass", kind)
    yield
    if kind is not MutexValue:
        kind.close_all_files()


@pytest.fixture
def names():
    """Return names for histograms: of one name they would share their mapped values."""
    return (f"example_{number}" for number in range(1_000_000))


def samples_of(kind, name, observe):
    registry = CollectorRegistry()
    histogram = kind(name, "Seconds.", buckets=BUCKETS, registry=registry)
    observe(histogram)
    (family,) = registry.collect()
    return {
        (it.name.removeprefix(name), it.labels.get("le")): it.value
        for it in family.samples
        if not it.name.endswith("_created")
    }


@hypothesis_settings(suppress_health_check=UNCHECKED)
@given(batches=st.lists(AMOUNTS, max_size=4))
def test_batches_of_observations_are_what_they_are_one_by_one(values, names, batches):
    def together(histogram):
        for batch in batches:
            histogram.observe_many(iter(batch))

    def one_by_one(histogram):
        for batch in batches:
            for amount in batch:
                histogram.observe(amount)

    wanted = samples_of(Histogram, next(names), one_by_one)
    found = samples_of(BatchHistogram, next(names), together)
    assert wanted.keys() == found.keys()
    assert found.pop(("_sum", None)) == pytest.approx(wanted.pop(("_sum", None)))
    assert found == wanted


@pytest.mark.django_db(transaction=True)
def test_each_part_of_a_batch_is_told_of_at_its_commit_whatever_becomes_of_the_next(monkeypatch):
    """Entries that only the database refuses halve the batch: the first half is committed."""
    told, seals = [], iter([None, None, LeaseLostError()])
    real, refusals = rows.insert_postings, iter([True, False, False])

    def refuse_once(*args, **kwargs):
        if next(refusals):
            raise DataError(1264, "Out of range")
        return real(*args, **kwargs)

    def seal():
        error = next(seals)
        if error:
            raise error

    entries = [put(f"k{number}", into("OAK", "1")) for number in range(4)]
    monkeypatch.setattr(rows, "insert_postings", refuse_once)
    with pytest.raises(LeaseLostError):
        post_due(policy(seal=seal, committed=told.append), limit=10)
    assert [[it.id for it in part.posted] for part in told] == [[it.pk for it in entries[:2]]]
    assert Transaction.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_batch_that_is_rolled_back_with_what_surrounds_it_is_not_told_of():
    told = []
    put("k", into("OAK", "1"))
    with transaction.atomic():
        assert len(post_due(policy(committed=told.append), limit=10).posted) == 1
        transaction.set_rollback(True)
    assert told == []
    post_due(policy(committed=told.append), limit=10)
    assert [len(part.posted) for part in told] == [1]
