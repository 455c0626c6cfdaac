"""The picture, where matplotlib is installed, and what is said where it is not."""

import subprocess
import sys

import pytest

from tests.demo.command import in_process

SHORT = ("--window", "15", "--steps", "20")


@pytest.fixture
def figure(monkeypatch):
    """The figure that is drawn last."""
    module = pytest.importorskip("matplotlib.figure")
    drawn = []

    class Kept(module.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(module, "Figure", Kept)
    return lambda: drawn[-1]


def test_the_picture_has_three_panels_on_a_transparent_ground(tmp_path, capsys, figure):
    from matplotlib.colors import to_rgba
    from matplotlib.image import imread

    path = tmp_path / "picture.png"
    code, output, _ = in_process(capsys, *SHORT, "--plot", str(path))
    assert code == 0
    assert output.endswith(f"Plotted in {path}\n")
    assert (imread(path)[..., 3] == 0).mean() > 0.5
    assert len(figure().axes) == 3
    for axes in figure().axes:
        texts = [*axes.get_xticklabels(), axes.title, axes.xaxis.label, *axes.texts]
        for color in (text.get_color() for text in [*texts, *axes.get_legend().get_texts()]):
            assert 0.3 < sum(to_rgba(color)[:3]) / 3 < 0.7  # neither near white nor near black


def test_no_line_hides_another(tmp_path, capsys, figure):
    in_process(capsys, *SHORT, "--plot", str(tmp_path / "picture.png"))
    _, ahead, diagonal = figure().axes
    wide, narrow = diagonal.lines
    assert wide.get_linewidth() > 2 * narrow.get_linewidth()
    assert wide.get_color() != narrow.get_color()
    assert (diagonal.get_yscale(), len(wide.get_xdata())) == ("log", 21)
    assert (wide.get_ydata() > 0).all()
    *lines, observed = ahead.lines
    assert len(lines) == 2 * 6
    assert [line.get_linewidth() for line in lines] == [4] * 6 + [1.5] * 6
    assert len(observed.get_xdata()) == 21
    for line in lines:  # each starts where its window ends
        year = int(line.get_xdata()[0])
        assert line.get_ydata()[0] == pytest.approx(observed.get_ydata()[year - 1900])


def test_the_side_of_zero_is_named(tmp_path, capsys, figure):
    in_process(capsys, "--window", "20", "--plot", str(tmp_path / "picture.png"))
    names = [text.get_text() for text in figure().axes[2].get_legend().get_texts()]
    assert names == ["free, positive at the end", "constrained, negative at the end"]


@pytest.mark.parametrize(("low", "high"), [("1", "2"), ("1e-99", "1e99")])
def test_any_counts_can_be_drawn(tmp_path, written, capsys, low, high):
    pytest.importorskip("matplotlib")
    csv = written([f"{i},{low if i % 3 else high},{low if i % 2 else high}" for i in range(7)])
    path = tmp_path / "picture.png"
    code, _, _ = in_process(capsys, "--csv", csv, "--steps", "3", "--plot", str(path))
    assert code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["absent/fits.png", "folder.png", "fits.pdf"])
def test_a_plot_that_cannot_be_written_is_found_before_training(tmp_path, capsys, path):
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    code, output, error = in_process(capsys, "--plot", str(tmp_path / path))
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert path in error


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, output, error = in_process(capsys, "--plot", str(tmp_path / "fits.png"))
    assert (code, output) == (2, "")
    assert error == "negdiag_param: error: --plot needs matplotlib: pip install matplotlib\n"


def test_matplotlib_is_not_needed_otherwise():
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from negdiag_param.__main__ import main; sys.exit(main(['--steps', '2']))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
