"""The demo: ``python -m negdiag_param``."""

import re
import subprocess
import sys

import pytest

from tests.demo.command import MAPS, in_process, rows


@pytest.fixture(scope="module")
def default():
    command = [sys.executable, "-m", "negdiag_param"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_is_short_and_quiet(default):
    assert (default.returncode, default.stderr) == (0, "")
    lines = default.stdout.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100


def test_the_constraint_costs_in_the_sample(default):
    found = rows(default.stdout)
    free, constrained = map(float, found["hare on hare"])
    assert free == pytest.approx(0.00182, rel=0.01)
    assert -1e-5 < constrained < 0
    assert [float(x) for x in found["SSR"]] == pytest.approx([1.5605, 1.5859], rel=1e-3)
    assert "the constraint costs 1.6 % of SSR" in default.stdout
    for label, published in (("lynx on hare", -0.0268), ("hare on lynx", 0.0246)):
        assert [float(x) for x in found[label]] == pytest.approx([published] * 3, rel=0.1)


# Of every length: the mean errors, free and constrained, and the windows better, same and worse.
FORECASTS = {
    8: ("inf", 0.612, 9, 2, 2),
    9: (0.647, 0.443, 7, 2, 3),
    10: (0.483, 0.407, 5, 2, 4),
    11: (0.402, 0.376, 4, 0, 6),
    12: (0.375, 0.368, 4, 1, 4),
    13: (0.386, 0.383, 4, 1, 3),
    14: (0.394, 0.381, 4, 1, 2),
    15: (0.415, 0.381, 4, 1, 1),
}


@pytest.mark.parametrize("length", FORECASTS)
def test_all_windows_are_reported_those_too_that_it_loses(default, length):
    entries = rows(default.stdout)[f"{length}-row windows"]
    marks = entries[-1]
    free, constrained, *counts = FORECASTS[length]
    assert [float(x) for x in entries[:2]] == pytest.approx([float(free), constrained], abs=5e-3)
    assert [int(x) for x in entries[4:7]] == [marks.count(sign) for sign in "+=-"]
    assert sum(counts) == len(marks) == 21 - length
    # An error near a tie may fall on either side of it.
    assert [marks.count(sign) for sign in "+=-"] == pytest.approx(counts, abs=1)


def test_the_verdict_is_that_of_the_table(default):
    text = " ".join(default.stdout.split())
    better, same, worse = (int(x) for x in rows(default.stdout)["all windows"][4:7])
    assert better + same + worse == 76
    assert f"Of 76 windows it makes {better} better and {worse} worse" in text
    assert "the constraint wins" in text


@pytest.mark.parametrize("words", ["is not stability", "eigenvalue at equilibrium", "overlap"])
def test_what_it_does_not_show_is_said(default, words):
    assert words in default.stdout


def test_columns_are_aligned(default):
    for table in default.stdout.split("\n\n")[1:3]:
        lines = [line for line in table.splitlines() if "---" not in line and "median" not in line]
        heads = {word.end() for word in re.finditer(r"\S+", lines[0])}
        for line in lines[1:]:
            ends = [found.end() for found in re.finditer(r"(?<=\s)([+-]?\d\S*|inf)(?=\s|$)", line)]
            assert ends
            assert heads.issuperset(ends), line


@pytest.mark.parametrize("map", MAPS)
def test_a_map_may_be_chosen(capsys, map):
    code, output, _ = in_process(capsys, "--map", map, "--steps", "3", "--window", "18")
    assert code == 0
    assert f'(model, "weight", dims=(-2, -1), map={map!r})' in output


def test_a_margin_is_kept(capsys):
    _, output, _ = in_process(capsys, "--margin", "0.05", "--window", "18")
    free, constrained = map(float, rows(output)["hare on hare"])
    assert free > 0
    assert constrained == pytest.approx(-0.00145, rel=0.01)
    assert "crowding costs each species at least 0.05 of growth per year" in output


@pytest.mark.parametrize(("window", "horizon"), [(8, 1), (8, 13), (20, 1), (5, 5)])
def test_a_length_of_windows_may_be_chosen(capsys, window, horizon):
    arguments = ("--window", window, "--horizon", horizon, "--steps", 3)
    code, output, _ = in_process(capsys, *map(str, arguments))
    assert code == 0
    found = rows(output)
    for first in range(1900, 1921 - window):
        entries = found[f"{first} to {first + window - 1}"]
        assert len(entries) == 3
        assert entries[-1] in "+=-"
    assert f"up to {horizon} row{'s' * (horizon > 1)} ahead" in output


def test_a_horizon_changes_the_forecasts_not_the_fits(capsys):
    one, two = (
        rows(in_process(capsys, "--window", "15", "--steps", "9", "--horizon", h)[1])
        for h in ("1", "6")
    )
    assert one["SSR"] == two["SSR"]
    assert one["1900 to 1914"] != two["1900 to 1914"]
    assert one["1905 to 1919"] == two["1905 to 1919"]


def test_a_file_of_ones_own_is_treated_the_same(written, capsys):
    path = written([f"{1950 + i / 2},{10 + i % 5},{4 + i % 3}" for i in range(10)])
    code, output, _ = in_process(
        capsys, "--csv", path, "--steps", "9", "--margin", "0.1", "--window", "7", "--horizon", "2"
    )
    assert code == 0
    found = rows(output)
    assert "1950.5 to 1953.5" in found
    assert float(found["prey on prey"][1]) < 0
    assert "published" not in output.lower()


def test_units_leave_the_title_short(written, capsys):
    path = written([f"{i}e98,{1 + i % 5}e99,{1 + i % 3}e-99" for i in range(9)])
    code, output, _ = in_process(capsys, "--csv", path, "--steps", "3")
    assert code == 0
    assert output.startswith(f"{path}: prey and predator, 0 to 8e+98\n")
    assert max(map(len, output.splitlines())) <= max(100, len(path) + 40)


def test_a_terminal_gets_a_bar_that_goes_away(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, _, progress = in_process(capsys, "--window", "20", "--steps", "41")
    assert progress.count("\r") == 2 * 3
    assert f"constrained [{'#' * 20}{' ' * 20}] 21/41" in progress
    assert progress.endswith("\r\033[K")


BAD = [
    ("--steps", "0", "expected 1 to 1000000, got '0'"),
    ("--steps", "-3", "expected 1 to 1000000, got '-3'"),
    ("--steps", "many", "expected a whole number, got 'many'"),
    ("--seed", "-1", "expected 0 to 4294967295, got '-1'"),
    ("--map", "relu", "expected one of smooth_abs, exp, softplus, square, sign_flip"),
    ("--window", "4", "expected 5 to 1000000, got '4'"),
    ("--window", "1_0", "expected a whole number, got '1_0'"),
    ("--window", "21", "expected from 5 to 20 of the 21 rows, got 21"),
    ("--horizon", "0", "expected 1 to 1000000, got '0'"),
    ("--horizon", "2.5", "expected a whole number, got '2.5'"),
    ("--horizon", "14", "expected from 1 to 13, the rows after the first window, got 14"),
    ("--margin", "-0.1", "expected 0 to 1000000, got '-0.1'"),
    ("--margin", "nan", "expected a finite number, got nan"),
    ("--margin", "1e9", "expected 0 to 1000000, got '1e9'"),
    ("--margin", "wide", "expected a number, got 'wide'"),
]


@pytest.mark.parametrize(("option", "value", "message"), BAD)
def test_a_bad_argument_is_named_with_what_was_expected(capsys, option, value, message):
    code, output, error = in_process(capsys, option, value)
    assert (code, output) == (2, "")
    assert f"argument {option}: {message}" in error.splitlines()[-1]


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_an_empty_name_is_not_the_default(capsys, option):
    code, output, error = in_process(capsys, option, "")
    assert (code, output, error.count("\n")) == (2, "", 1)


def test_the_package_does_not_load_the_demo():
    script = "import sys, negdiag_param; sys.exit('negdiag_param._demo' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
