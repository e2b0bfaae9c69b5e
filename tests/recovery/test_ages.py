"""Ages as people type them."""

import pytest

from recovery.ages import seconds_of

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5_400), (" 7d ", 604_800), ("2w", 1_209_600)],
)
def test_age_is_so_many_seconds(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1y", "1h30m", "inf", "9" * 13, "٣h x"])
def test_what_is_no_age_is_refused(text):
    with pytest.raises(ValueError, match="no age such as"):
        seconds_of(text)


def test_age_that_leaves_the_calendar_is_refused():
    assert seconds_of("36525d") == 3_155_760_000
    with pytest.raises(ValueError, match="longer ago than anything here"):
        seconds_of("999999999999w")
