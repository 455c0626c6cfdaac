"""The command: ``python -m negdiag_param``."""

import runpy
import subprocess
import sys

import pytest

from negdiag_param import __main__ as command
from negdiag_param._demo import fit, plot

CSV = "year,hare\n1,30\n2,47.2\n3,70.2\n4,77.4\n5,36.3\n6,20.6\n"


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
