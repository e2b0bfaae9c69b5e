"""Batches: half as large after a slow one, twice as large after a quick one, within bounds."""

import pytest

from recovery.pacing import next_size

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("size", "took_s", "following"),
    [
        (100, 1.01, 50),
        (100, 1.0, 100),
        (100, 0.25, 100),
        (100, 0.24, 200),
        (12, 9.0, 10),
        (300, 0.0, 400),
        (400, 0.0, 400),
    ],
)
def test_next_batch_follows_from_the_time_of_the_last(size, took_s, following):
    assert next_size(size, took_s, least=10, most=400, longest_s=1.0) == following


@pytest.mark.parametrize("took_s", [9.0, 0.5, 0.0])
def test_no_batch_is_larger_than_the_most_though_that_is_less_than_the_least(took_s):
    assert next_size(2, took_s, least=10, most=2, longest_s=1.0) == 2
