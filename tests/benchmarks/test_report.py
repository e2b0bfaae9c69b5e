import json
from collections.abc import Callable

import pytest

from benchmarks.report import (
    Row,
    Table,
    at_least,
    at_most,
    interleaved,
    percentile,
    plain,
    ratio,
    ratios,
)

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.995, 100), (1.0, 100), (0.01, 1), (0.0, 1)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: float):
    assert percentile([*range(100, 0, -1)], share) == expected


def test_percentile_of_few_samples():
    assert percentile([7.0], 0.99) == 7
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2


def test_ratios_compare_round_by_round():
    """A round in which the machine was slow for all does not count twice."""
    assert ratios([10, 5, 30], [10, 10, 20]) == [1, 0.5, 1.5]
    assert ratio([10, 5, 30], [10, 10, 20]) == 1


def test_ratio_of_other_rounds_is_that_of_the_medians():
    assert ratio([30], [10, 20, 10]) == 3


def test_contenders_are_interleaved_and_every_second_round_goes_backwards():
    calls: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        def measure() -> float:
            calls.append(name)
            return float(len(calls))

        return measure

    found = interleaved({"a": contender("a"), "b": contender("b")}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}


@pytest.mark.parametrize(
    ("bar", "met"),
    [
        (at_least("x", 0.85, 0.85), True),
        (at_least("x", 0.849, 0.85), False),
        (at_least("x", 0.1, 0.85, excuse="machine saturated"), True),
        (at_most("x", 1.15, 1.15), True),
        (at_most("x", 1.151, 1.15), False),
    ],
)
def test_bar_is_met_at_its_limit_or_excused(bar, met: bool):
    assert bar.met is met
    assert bar.text().startswith("met " if met else "missed ")
    assert bar.excuse in bar.text()
    assert bar.as_dict()["met"] is met


@pytest.mark.parametrize(
    ("value", "text"),
    [(12_345.6, "12,346"), (99.94, "99.9"), (9.876, "9.88"), (0.1234, "0.123"), (0, "0")],
)
def test_numbers_are_short(value: float, text: str):
    assert plain(value) == text


def test_table_says_medians_spread_ratio_bars_and_notes():
    table = Table("drain", "entries a second", "/s", floor="the driver")
    table.rows = [Row("driver", [100, 90, 110], [100, 90, 110]), Row("ours", [80, 81, 88], [100.0])]
    table.bars = [at_least("ours at least 0.85", 0.81, 0.85)]
    table.notes = ["a quiet machine"]
    lines = [" ".join(line.split()) for line in table.text().splitlines()]
    assert lines == [
        "drain: entries a second",
        "median low to high of the driver",
        "driver 100 /s 90.0 to 110 1.00",
        "ours 81.0 /s 80.0 to 88.0 0.81",
        "missed ours at least 0.85: 0.810",
        "note: a quiet machine",
    ]


def test_table_without_a_bar_says_so():
    assert "held to no bar" in Table("idle", "nothing", "").text()


def test_table_is_kept_as_json():
    row = Row("ours", [80.0, 90.0], [100.0, 100.0])
    table = Table("drain", "t", "/s", rows=[row], bars=[at_most("c", 1, 2)])
    found = json.loads(json.dumps(table.as_dict()))
    assert found["rows"][0]["ratio"] == pytest.approx(0.85)
    assert found["rows"][0]["low"] == 80
    assert found["bars"][0]["met"] is True
