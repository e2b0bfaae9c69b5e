"""The wait before the next attempt: the formula, the cap, the jitter."""

import random

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from recovery.backoff import delay_sec

pytestmark = pytest.mark.once

ATTEMPTS = st.integers(min_value=-5, max_value=10**9)
SHARES = st.floats(min_value=0, max_value=1)


@pytest.fixture(autouse=True)
def _defaults(settings):
    settings.JOB_BACKOFF_BASE_SEC = 5
    settings.JOB_BACKOFF_CAP_SEC = 1_800
    settings.JOB_BACKOFF_JITTER = 0


each = profile(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [(1, 5), (2, 10), (3, 20), (4, 40), (8, 640), (9, 1_280), (10, 1_800), (11, 1_800)],
)
def test_delay_doubles_with_each_attempt_up_to_the_cap(attempt, seconds):
    assert delay_sec(attempt) == seconds


@pytest.mark.parametrize("attempt", [-5, -1, 0, 1])
def test_attempts_count_from_one(attempt):
    assert delay_sec(attempt) == 5


@pytest.mark.parametrize("attempt", [63, 64, 1_024, 1_025, 10**9, 10**30])
def test_huge_attempts_wait_for_the_cap_and_do_not_overflow(attempt, settings):
    settings.JOB_BACKOFF_BASE_SEC = 0.001
    assert delay_sec(attempt) == 1_800


@each
@given(ATTEMPTS, st.floats(0.001, 86_400), st.floats(0.001, 86_400))
def test_without_jitter_the_delay_is_exactly_the_formula(settings, attempt, base, cap):
    settings.JOB_BACKOFF_BASE_SEC, settings.JOB_BACKOFF_CAP_SEC = base, cap
    formula = base * 2 ** (min(max(attempt, 1), 100) - 1)  # 2**99 ms is past every cap
    assert delay_sec(attempt) == min(formula, cap)


@each
@given(ATTEMPTS, SHARES, st.integers(0, 2**32))
def test_jitter_takes_off_at_most_its_share(settings, attempt, share, seed):
    full = delay_sec(attempt)
    settings.JOB_BACKOFF_JITTER = share
    delay = delay_sec(attempt, draw=random.Random(seed).random)
    assert full * (1 - share) - 1e-9 <= delay <= full
    settings.JOB_BACKOFF_JITTER = 0


@each
@given(SHARES)
def test_draw_decides_how_much_of_the_share_is_taken(settings, drawn):
    settings.JOB_BACKOFF_JITTER = 0.5
    assert delay_sec(1, draw=lambda: drawn) == pytest.approx(5 - 2.5 * drawn)


@each
@given(ATTEMPTS)
def test_later_attempts_never_wait_less(attempt):
    assert delay_sec(attempt) <= delay_sec(attempt + 1)


def test_jitter_spreads_equal_attempts(settings):
    settings.JOB_BACKOFF_JITTER = 1
    assert len({delay_sec(10) for _ in range(50)}) > 40
