"""The demo: ``python -m negdiag_param``."""

import re
import subprocess
import sys

import pytest

from tests.demo.command import MAPS, in_process


def table(output):
    """The rows of the printed table as lists of text, by their labels."""
    rows = (re.split(r"\s{2,}", line.strip()) for line in output.splitlines())
    return {label: entries for label, *entries in rows if entries}


def test_the_command_reproduces_the_figures(tmp_path):
    plot = tmp_path / "fits.png"
    command = [sys.executable, "-m", "negdiag_param", "--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 4), done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert plot.read_bytes().startswith(b"\x89PNG")

    rows = table(done.stdout)
    free, *constrained = map(float, rows["hare on hare"])
    assert free > 0 > max(constrained)
    assert all(float(entry) < 0 for entry in rows["largest diagonal, any step"][1:])
    for entry in rows["lynx on hare"]:
        assert float(entry) == pytest.approx(-0.0268, rel=0.1)
    for entry in rows["hare on lynx"]:
        assert float(entry) == pytest.approx(0.0246, rel=0.1)
    assert rows["growth of hare"][-1] == "+0.5469"
    for said in ("regression", "price", "boundary", "not stability", "another form of fit"):
        assert said in done.stdout.lower()


@pytest.mark.parametrize("map", MAPS)
def test_one_map_is_fitted_beside_the_unconstrained(capsys, map):
    code, output, progress = in_process(capsys, "--map", map, "--steps", "3")
    assert code == 0
    assert re.search(rf"^ +unconstrained +{map} +published$", output, re.MULTILINE)
    assert len(progress.splitlines()) == 2


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, _, progress = in_process(capsys, "--map", "exp", "--steps", "41")
    assert progress.count("\r") == 2 * 3
    assert f"[{'#' * 40}] 41/41" in progress


@pytest.mark.parametrize(
    "arguments",
    [
        ("--steps", "0"),
        ("--steps", "-3"),
        ("--steps", "many"),
        ("--seed", "-1"),
        ("--map", "relu"),
    ],
)
def test_a_bad_argument_ends_with_exit_code_2(capsys, arguments):
    code, output, error = in_process(capsys, *arguments)
    assert (code, output) == (2, "")
    assert f"argument {arguments[0]}: " in error.splitlines()[-1]


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_an_empty_name_is_not_the_default(capsys, option):
    code, output, error = in_process(capsys, option, "")
    assert (code, output, error.count("\n")) == (2, "", 1)


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


def test_the_package_does_not_load_the_demo():
    script = "import sys, negdiag_param; sys.exit('negdiag_param._demo' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
