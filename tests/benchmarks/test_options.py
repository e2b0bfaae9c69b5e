import pytest

from benchmarks.options import FULL_SIZES, SECTIONS, parse

pytestmark = pytest.mark.once


def test_everything_is_measured_unless_said_otherwise():
    assert parse([]).only == tuple(SECTIONS)


def test_sections_are_measured_once_in_their_own_order():
    names = list(SECTIONS)
    assert parse(["--only", f"{names[2]}, {names[0]},{names[2]}"]).only == (names[0], names[2])


@pytest.mark.parametrize("only", ["drian", "drain,drian", "", ","])
def test_wrong_section_is_refused_by_a_line_that_names_all(only: str, capsys):
    with pytest.raises(SystemExit) as left:
        parse(["--only", only])
    assert left.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(name in last for name in SECTIONS)


def test_full_run_grows_further():
    assert parse(["--full"]).sizes == FULL_SIZES
    assert parse([]).sizes == FULL_SIZES[:-1]


def test_amounts_are_taken():
    options = parse(["--rounds", "3", "--entries", "700", "--orders=20", "--idle-s", "9"])
    assert (options.rounds, options.entries, options.orders, options.idle_s) == (3, 700, 20, 9)
    assert parse(["--sizes", "5000,2000"]).sizes == (2_000, 5_000)


@pytest.mark.parametrize(
    "arguments",
    [["--rounds", "0"], ["--entries", "-1"], ["--tasks", "x"], ["--sizes", "5000"], ["--fast"]],
)
def test_wrong_amounts_are_refused(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as left:
        parse(arguments)
    assert left.value.code == 2
    assert arguments[0] in capsys.readouterr().err
