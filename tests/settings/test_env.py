"""Typed settings: what is accepted, what is refused, and in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings import jobs
from settings.env import Env, WrongSettingsError, is_even_period

pytestmark = pytest.mark.once


def lines(env: Env) -> list[str]:
    with pytest.raises(WrongSettingsError) as caught:
        env.finish()
    assert caught.value.code == 2
    return caught.value.lines


@pytest.mark.parametrize("raw", ["true", "TRUE", "yes", "on", "1", " true "])
def test_truth_is_told_in_four_words(raw):
    assert Env({"KEY": raw}).boolean("KEY", default=False) is True


@pytest.mark.parametrize("raw", ["false", "No", "off", "0"])
def test_falsehood_is_told_in_four_words(raw):
    assert Env({"KEY": raw}).boolean("KEY", default=True) is False


@pytest.mark.parametrize("raw", ["", "   "])
def test_empty_value_means_the_default(raw):
    env = Env({"KEY": raw})
    assert env.boolean("KEY", default=True) is True
    assert env.integer("KEY", 7, low=1, high=9) == 7
    assert env.number("KEY", 0.5, low=0, high=1) == 0.5
    assert env.choice("KEY", "a", ("a", "b")) == "a"
    assert env.words("KEY", ("x",)) == ["x"]
    assert env.period("KEY", 10) == 10
    assert env.url("KEY", ("mysql",), "mysql://host/name") == ""
    env.finish()


@pytest.mark.parametrize("raw", ["1", "9", "+5", " 5 "])
def test_whole_numbers_within_their_bounds_are_accepted(raw):
    assert Env({"KEY": raw}).integer("KEY", 7, low=1, high=9) == int(raw)


@pytest.mark.parametrize("raw", ["0", "10", "-1", "1.5", "ten", "1e1", "NaN", "0x5", "5 s"])
def test_other_whole_numbers_are_one_line(raw):
    env = Env({"KEY": raw})
    assert env.integer("KEY", 7, low=1, high=9) == 7
    assert lines(env) == [f"setting KEY={raw!r} is not usable: expected a whole number from 1 to 9"]


@pytest.mark.parametrize("raw", ["-0.01", "1.01", "nan", "inf", "-inf", "half", "0,5"])
def test_other_numbers_are_one_line(raw):
    env = Env({"KEY": raw})
    assert env.number("KEY", 0.5, low=0, high=1) == 0.5
    assert lines(env) == [f"setting KEY={raw!r} is not usable: expected a number from 0 to 1"]


@pytest.mark.parametrize("raw", ["maybe", "2", "truth", "ja"])
def test_other_truth_values_are_one_line(raw):
    env = Env({"KEY": raw})
    assert env.boolean("KEY", default=False) is False
    assert lines(env) == [f"setting KEY={raw!r} is not usable: expected true or false"]


def test_choice_is_made_without_regard_to_case():
    assert Env({"KEY": "ZH-Hans"}).choice("KEY", "en", ("en", "zh-hans")) == "zh-hans"


def test_other_choices_are_one_line_with_all_there_are():
    env = Env({"KEY": "fr"})
    env.choice("KEY", "en", ("en", "zh-hans"))
    assert lines(env) == ["setting KEY='fr' is not usable: expected one of en, zh-hans"]


def test_words_are_split_at_commas_and_trimmed():
    assert Env({"KEY": " a, b ,,c "}).words("KEY", ()) == ["a", "b", "c"]


@pytest.mark.parametrize("raw", ["1", "10", "15", "30", "60", "120", "3600", "7200", "86400"])
def test_even_periods_are_accepted(raw):
    assert Env({"KEY": raw}).period("KEY", 10) == int(raw)


@pytest.mark.parametrize(
    "raw", ["0", "-10", "7", "59", "61", "90", "2520", "3660", "18000", "86401"]
)
def test_uneven_periods_are_one_line(raw):
    env = Env({"KEY": raw})
    assert env.period("KEY", 10) == 10
    (line,) = lines(env)
    assert line.startswith(f"setting KEY={raw!r} is not usable: expected seconds that divide")


@given(st.integers(min_value=1, max_value=86_400))
def test_even_period_divides_the_day(seconds):
    assert not is_even_period(seconds) or 86_400 % seconds == 0


@pytest.mark.parametrize(
    "raw",
    ["mysql://u:p@host/name", "mysql://host:3306/name", "sqlite:///file", "unix:///run/redis"],
)
def test_urls_of_known_schemes_are_accepted(raw):
    assert Env({"KEY": raw}).url("KEY", ("mysql", "sqlite", "unix"), "mysql://host/n") == raw


@pytest.mark.parametrize(
    "raw",
    ["host", "postgres://host/n", "mysql:", "mysql:///n", "mysql://host:port/n", "sqlite:",
     "mysql://host:99999/n", "mysql://[::1/n"],
)  # fmt: skip
def test_other_urls_are_one_line(raw):
    env = Env({"KEY": raw})
    assert env.url("KEY", ("mysql", "sqlite"), "mysql://host/name") == ""
    assert lines(env) == [
        f"setting KEY={raw!r} is not usable: expected a URL such as mysql://host/name"
    ]


def test_password_of_a_wrong_url_is_not_shown():
    env = Env({"KEY": "postgres://user:hush@host/name"})
    env.url("KEY", ("mysql",), "mysql://host/name")
    (line,) = lines(env)
    assert "hush" not in line
    assert "KEY=(hidden)" in line


def test_misspelt_key_is_named_with_the_nearest_one():
    env = Env({"JOB_OUTBOX_BATCHSIZE": "5"})
    env.integer("JOB_OUTBOX_BATCH_SIZE", 500, low=1, high=5_000)
    assert lines(env) == [
        "setting JOB_OUTBOX_BATCHSIZE is not known: did you mean JOB_OUTBOX_BATCH_SIZE?"
    ]


@pytest.mark.parametrize(
    "key", ["JOB_NAME", "PATH", "job_outbox_batch_size", "XJOB_OUTBOX_BATCH_SIZE"]
)
def test_keys_of_others_are_left_alone(key):
    env = Env({key: "5"})
    env.integer("JOB_OUTBOX_BATCH_SIZE", 500, low=1, high=5_000)
    env.finish()


def test_every_wrong_key_is_named_at_once(capsys):
    env = Env({"JOB_ONE": "x", "JOB_TWO": "-1", "JOB_THREEE": "1"})
    env.integer("JOB_ONE", 1, low=1, high=9)
    env.number("JOB_TWO", 1, low=0, high=9)
    env.integer("JOB_THREE", 1, low=1, high=9)
    assert [line.split("=")[0].split(" is ")[0] for line in lines(env)] == [
        "setting JOB_ONE",
        "setting JOB_TWO",
        "setting JOB_THREEE",
    ]
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 3


def test_long_values_are_cut():
    env = Env({"KEY": "9" * 10_000})
    env.integer("KEY", 1, low=1, high=9)
    (line,) = lines(env)
    assert len(line) < 200


@given(st.text(max_size=40))
def test_any_text_is_a_number_or_one_line(raw):
    env = Env({"KEY": raw})
    value = env.integer("KEY", 5, low=1, high=9)
    assert 1 <= value <= 9
    assert len(env.wrong) <= 1
    assert all("\n" not in line and "\r" not in line for line in env.wrong)


@pytest.mark.parametrize("raw", ["UTC", "Asia/Shanghai", "Europe/Berlin"])
def test_known_time_zones_are_accepted(raw):
    assert Env({"KEY": raw}).time_zone("KEY", "UTC") == raw


@pytest.mark.parametrize("raw", ["Mars/Olympus", "../../etc/passwd", "Asia", "x" * 300])
def test_unknown_time_zones_are_one_line(raw):
    env = Env({"KEY": raw})
    assert env.time_zone("KEY", "UTC") == "UTC"
    (line,) = lines(env)
    assert line.endswith(" is not usable: expected a time zone such as UTC or Asia/Shanghai")


@pytest.mark.parametrize(
    "raw",
    ["lease.acquired=crash", "a=stop@2, b=sleep:0.5,", "outbox.entry:a=b:c=raise", "a=sleep:3@12"],
)
def test_fault_points_are_accepted_in_their_notation(raw):
    assert Env({"KEY": raw}).matching("KEY", jobs.RECOVERY_FAULTPOINTS_PATTERN, "faults") == raw


@pytest.mark.parametrize("raw", ["x", "a=explode", "=crash", "a=sleep", "a=crash:1", "a=stop@x"])
def test_other_fault_points_are_one_line(raw):
    env = Env({"KEY": raw})
    assert env.matching("KEY", jobs.RECOVERY_FAULTPOINTS_PATTERN, "faults") == ""
    assert lines(env) == [f"setting KEY={raw!r} is not usable: expected faults"]
