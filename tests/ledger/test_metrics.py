"""Latencies of a batch: observed together they are what they are one by one."""

import math

import prometheus_client.values
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.values import MultiProcessValue, MutexValue

from ledger.metrics import BatchHistogram

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


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
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
