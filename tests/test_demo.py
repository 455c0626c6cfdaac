"""The example: its data, its fits, what is said of them, and its command."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from negdiag_param import __main__ as command
from negdiag_param import negative_diagonals
from negdiag_param._demo import fit, plot
from negdiag_param._demo.data import ALPHA_PINENE, HUDSON_BAY, Data, read_csv
from negdiag_param._demo.fit import Comparison, windows
from negdiag_param._demo.report import notes, sign_test, table, verdict, votes

INF, WRONG = torch.inf, "of a wrong sign, free"
ROWS = "year,hare,lynx\n1900,30,4\n1901,47.2,6.1\n1902,70.2,9.8\n1903.5,77,35\n1905,36,59\n"
CSV = "year,hare\n1,30\n2,47.2\n3,70.2\n4,77.4\n5,36.3\n6,20.6\n"


@pytest.fixture(scope="session")
def results():
    """The comparisons that are published, made once."""
    kinds = ("forward", "midpoint")
    return [Comparison(data, kind) for data in (ALPHA_PINENE, HUDSON_BAY) for kind in kinds]


# The data


def test_the_pelts_are_the_published_ones():
    assert HUDSON_BAY.values.sum(0).tolist() == pytest.approx([715.7, 423.5])
    assert HUDSON_BAY.values[[0, 3, -1]].tolist() == [[30, 4], [77.4, 35.2], [24.7, 8.6]]


def test_the_published_rates_explain_the_reaction():
    """Refitted to the published numbers, they leave a sum of squares of 19.872."""
    a, b, c, d, e = (rate * 1e-5 for rate in (5.926, 2.963, 2.047, 27.45, 3.998))  # per minute
    rates = torch.zeros(5, 5, dtype=torch.float64)
    scheme = [[-a - b, 0, 0], [b, -c - d, e], [0, d, -e], [a, 0, 0], [0, c, 0]]
    rates[:, :3] = torch.tensor(scheme)
    assert torch.equal((rates[:, :3] != 0).double(), ALPHA_PINENE.mask)
    minutes = ALPHA_PINENE.times[:, None, None] * 24 * 60
    expected = torch.matrix_exp(rates * minutes) @ ALPHA_PINENE.values[0]
    assert (expected - ALPHA_PINENE.values).square().sum() == pytest.approx(19.872, abs=2e-3)


@pytest.mark.parametrize("text", [ROWS, "\ufeff" + ROWS.replace("\n", " \r\n\r\n") + ",,\r\n"])
def test_files_are_read(tmp_path, text):
    (tmp_path / "own.csv").write_bytes(text.encode())
    data = read_csv(str(tmp_path / "own.csv"))
    assert data.times.tolist() == [1900, 1901, 1902, 1903.5, 1905]
    assert data.values.T.tolist() == [[30, 47.2, 70.2, 77, 36], [4, 6.1, 9.8, 35, 59]]


BAD = {
    "semicolons": (ROWS.replace(",", ";"), "line 1: expected commas, as in year,hare,lynx"),
    "empty": ("", "line 0: expected commas"),
    "unsorted": (ROWS + "1904,1,1", "line 7: .* increase .* 1904 after 1905; sort the rows"),
    "text": (ROWS + "1906,many,1", "line 7: could not convert string to float: 'many'"),
    "decimal comma": (ROWS + "1906,4,5,1", "line 7: expected 3 numbers, found 4"),
    "zero": (ROWS + "1906,0,1", "line 7: expected counts above zero"),
    "nan": (ROWS + "1906,1,nan", "line 7: expected counts above zero"),
    "few": (ROWS[:25], "expected 5 rows or more, found 1"),
    "encoding": (ROWS + "1906,\udcff,1", "'utf-8' codec can't decode"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_gets_a_message_that_says_where_and_why(tmp_path, text, message):
    (tmp_path / "bad.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"bad\.csv, .*{message}"):
        read_csv(str(tmp_path / "bad.csv"))


# The fits


def slopes(result, weight):
    """Derivatives of the sum of squares by the weight, in parts of the largest at zero."""
    mask = result.data.mask

    def derivatives(scaled):
        return (result.inputs @ (scaled * mask).mT - result.rates).mT @ result.inputs * mask

    return derivatives(weight * result.gap) / derivatives(0 * weight).abs().amax((1, 2), True)


def test_constrained_fits_are_the_best_feasible_ones(results):
    """Karush, Kuhn and Tucker: no slope but at the bound, and there only outwards."""
    with_margin = Comparison(ALPHA_PINENE, "midpoint", margin=0.1)
    for result, margin in (*((result, 0.0) for result in results), (with_margin, 0.1)):
        weight = result.weights["constrained"]
        slope, diagonal = slopes(result, weight), weight.diagonal(dim1=1, dim2=2)
        at_bound, along = diagonal >= -margin - 1e-9, slope.diagonal(dim1=1, dim2=2)
        assert at_bound.any()
        assert (along[at_bound] < 1e-5).all()
        along[at_bound] = 0
        assert slope.abs().max() < 1e-5
        assert (diagonal <= -margin * (1 - 1e-12)).all()
        assert (diagonal < 0).all()


def test_the_rivals_solve_their_least_squares_and_what_the_constrained_fits_equal(results):
    for result in results:
        for name in ("free", "wrong signs dropped", "diagonal dropped"):
            weight = result.weights[name]
            assert slopes(result, weight)[weight != 0].abs().max() < 1e-8
        constrained = result.weights["constrained"]
        assert torch.equal(constrained, result.weights["clamped by hand"])
        assert (constrained - result.weights["wrong signs dropped"]).abs().max() < 1e-3
        from_free = (constrained - result.weights["free"]).abs().amax((1, 2))
        assert torch.equal(from_free > 1e-3, result.wrong)


@pytest.mark.parametrize("map", command.MAPS)
def test_the_diagonal_is_negative_at_every_step(monkeypatch, map):
    seen = []

    def watched(model):
        for name, diagonal in negative_diagonals(model):
            seen.append(diagonal.detach().clone())
            yield name, diagonal

    monkeypatch.setattr(fit, "negative_diagonals", watched)
    monkeypatch.setattr(fit, "STEPS", 60)
    assert Comparison(HUDSON_BAY, "midpoint", map=map).kept
    assert len(seen) == 60
    assert all((diagonal < 0).all() for diagonal in seen)


KNOWN = {
    "counts": (lambda t: 10 / (1 + 4 * (-0.5 * t).exp()), [[-0.05, 0.5]]),
    "amounts": (lambda t: 3 * (-0.2 * t).exp(), [[-0.2]]),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_forecasts_solve_the_equations(kind):
    values, weight = KNOWN[kind][0], torch.tensor(KNOWN[kind][1], dtype=torch.float64)
    times = torch.tensor([0, 1, 2, 3.5, 4, 6], dtype=torch.float64)
    data = Data("known", "year", times, values(times)[:, None], 0 * weight, kind == "counts")
    spans = [range(3), range(1, 5)]
    means = torch.stack([data.values[span].mean(0) for span in spans])
    scaled = weight * data.inputs(means)[:, None] / (1 if data.are_counts else means[:, None])
    result = SimpleNamespace(data=data, windows=spans, means=means)
    assert Comparison.forecast(result, scaled).max() < 1e-6
    truth = data.transform(data.values)
    expected = [(truth[s.stop :] - truth[s.stop - 1]).square().mean().sqrt() for s in spans]
    torch.testing.assert_close(Comparison.forecast(result, 0 * scaled), torch.stack(expected))
    assert Comparison.forecast(result, 0 * scaled + 1e3).tolist() == [INF] * 2


def test_windows_are_all_that_suffice_and_leave_a_row():
    assert windows(HUDSON_BAY) == [range(i, i + n) for n in range(4, 21) for i in range(21 - n)]
    long = Data("long", "day", torch.arange(400.0), torch.ones(400, 1), torch.ones(1, 2), True)
    assert 100 < len(windows(long)) <= 200


# What is said of them follows from the figures, and the published figures are those of the data


def made_up(constrained, free, ends=(4, 5, 6, 7, 8, 9, 10), kept=True, off=0.0):
    """A comparison of windows whose errors are given, and the rows that they end at."""
    pairs = list(zip(constrained, free, strict=True))
    weights = {"constrained": 0.0, "clamped by hand": off, "wrong signs dropped": -2 * off}
    return SimpleNamespace(
        data=SimpleNamespace(name="made up"),
        kind="midpoint",
        windows=[range(end - 4, end) for end in ends[: len(pairs)]],
        wrong=torch.tensor([a != b for a, b in pairs]),
        weights={name: torch.tensor([value]) for name, value in weights.items()},
        errors={"constrained": torch.tensor(constrained), "free": torch.tensor(free)},
        kept=kept,
    )


def test_a_last_row_has_one_vote_and_small_differences_none():
    assert votes(made_up([1.0, 2.0, 3.0], [2.0, 2.01, 2.0]), "free") == (1, 1)
    assert votes(made_up([1.0, INF, 1.0, INF], [INF, 1.0, INF, INF]), "free") == (2, 1)
    assert votes(made_up([1.0, 1.0, 3.0, 3.0], [2.0] * 4, (4, 4, 4, 5)), "free") == (1, 1)
    assert votes(made_up([1.0, 3.0], [2.0, 2.0], (4, 4)), "free") == (0, 0)


def test_the_verdict_follows_from_a_sign_test():
    for better, worse, p, words in (
        (0, 0, 1, "neither better nor worse than free"),
        (5, 0, 0.0625, "5 better than free, 0 worse: p = 0.062 may be chance"),
        (6, 0, 0.03125, "0 worse: p = 0.031 is beyond chance, were votes independent"),
        (0, 6, 0.03125, "0 better than free, 6 worse: p = 0.031 is beyond chance"),
        (10, 4, 0.1796, "10 better than free, 4 worse: p = 0.18 may be chance"),
    ):
        assert sign_test(better, worse) == pytest.approx(p, rel=1e-3)
        assert words in verdict(better, worse)


def rows(results):
    """The labels of the table with their cells, in order."""
    return [(w[0], w[1:]) for w in (re.split(r"\s{2,}", row.strip()) for row in table(results))]


def test_table_and_notes_follow_from_the_figures():
    found = rows([made_up([1.0] * 6 + [5.0], [2.0] * 6 + [5.0]), made_up([1.0, 2.0], [1.0, 2.0])])
    assert found[4:6] == [(WRONG, ["6", "0"]), ("their numbers of rows", ["4 to 4"])]
    assert found[7] == ("free", ["6 - 0*", "0 - 0"])
    assert found[9:] == [("constrained", ["1 (1)"]), ("free", ["2 (2)"])]
    said = "\n".join(notes([made_up([1.0, INF], [2.0, INF], kept=False, off=0.25)], 0.5))
    assert "made up, midpoint: 1 better than free, 0 worse: p = 1 may be chance" in said
    assert "constrained and clamped by hand, differ by at most 0.2\n" in said
    assert "constrained and wrong signs dropped, differ by at most 0.5\n" in said
    assert "negative and at most -0.5 after each of 2000 steps: NO" in said
    assert said.endswith("ran off to infinity (negative is not stable): 1")
    assert "at most 0 after each of 2000 steps: yes" in list(notes([made_up([1.0], [1.0])], 0.0))[4]


def test_the_published_figures(results):
    found = rows(results)
    assert found[4] == (WRONG, ["2", "3", "24", "128"])
    assert found[7:12] == [
        ("free", ["2 - 0", "3 - 0", "7 - 0*", "10 - 4"]),
        *((name, ["0 - 0"] * 4) for name in ("clamped by hand", "wrong signs dropped")),
        ("diagonal dropped", ["5 - 0", "5 - 0", "11 - 4", "8 - 7"]),
        ("last row repeated", ["5 - 0", "5 - 0", "13 - 3*", "14 - 3*"]),
    ]
    assert max(map(len, [*table(results), *notes(results, 0.0)])) <= 100
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    caption = re.findall(r"\d+", readme.split("*Each dot")[1].split("*")[0])
    assert caption == ["3", "15", "128", "153", "2", "24"]


# The command


@pytest.mark.integration("matplotlib")
def test_a_file_of_ones_own_is_fitted_and_drawn(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fit, "STEPS", 20)
    (tmp_path / "own.csv").write_text(CSV)
    options = ["--map", "exp", "--margin", "0.5", "--plot", str(tmp_path / "own.png")]
    assert command.main([str(tmp_path / "own.csv"), *options]) == 0
    assert "map='exp', margin=0.5" in capsys.readouterr().out
    assert (tmp_path / "own.png").read_bytes().startswith(b"\x89PNG")


REFUSED = {
    "absent": (["absent.csv"], "No such file or directory: 'absent.csv'"),
    "margin": (["--margin", "-1"], "--margin: expected 0 to 1e6, found -1.0"),
    "folder": (["--plot", "absent/plot.png"], "No such file or directory: 'absent/plot.png'"),
    "no matplotlib": (["--plot", "a.png"], f"{sys.executable} -m pip install matplotlib\n"),
}


@pytest.mark.integration("matplotlib")
@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_at_once(monkeypatch, capsys, arguments, message):
    if "pip install" in message:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(command, "Comparison", None)
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_an_interrupt_ends_quietly(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "Comparison", interrupted)
    monkeypatch.setattr(sys, "argv", [""])
    monkeypatch.delitem(sys.modules, "negdiag_param.__main__")
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("negdiag_param", run_name="__main__")
    assert (exit_.value.code, capsys.readouterr().err) == (130, "")


def test_it_needs_no_matplotlib_and_warns_of_nothing(tmp_path):
    (tmp_path / "own.csv").write_text(CSV)
    code = (
        "import sys, negdiag_param; assert 'negdiag_param._demo' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "from negdiag_param import __main__; from negdiag_param._demo import fit; fit.STEPS = 20\n"
        "sys.exit(__main__.main([sys.argv[1]]))"
    )
    arguments = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "own.csv")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.integration("matplotlib")
def test_the_picture_shows_every_window_and_names_its_axes(results, monkeypatch):
    from matplotlib import figure

    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.extend(self.axes))
    plot.plot(results[1::2], "unused.png")
    for axes, result in zip(drawn, results[1::2], strict=True):
        assert axes.get_xlabel() == f"last {result.data.time} of the rows that are fitted"
        assert axes.get_ylabel() == f"largest diagonal entry, per {result.data.time}"
        free, constrained = (dots.get_offsets()[:, 1] for dots in axes.collections)
        assert len(free) == len(constrained) == len(result.windows)
        assert (sum(free >= 0), sum(constrained >= 0)) == (int(result.wrong.sum()), 0)
        assert axes.get_ylim()[0] < free.min() < 0 < free.max() < axes.get_ylim()[1]
