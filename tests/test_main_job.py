"""The demo: ``python -m negdiag_param``."""

import re
import subprocess
import sys

import pytest
import torch

from negdiag_param.__main__ import main
from negdiag_param._hudson_bay import HUDSON_BAY, Community, fit, read_csv
from negdiag_param._registration import MAPS

HEADER = "year,prey,predator\n"
ROWS = ["1,10,5", "2,12,6", "3,9,8", "4.5,7,7", "5,8,4"]


@pytest.fixture
def data(tmp_path):
    """Writes a CSV of the given rows, or bytes, and returns its path."""

    def write(content):
        path = tmp_path / "data.csv"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(HEADER + "\n".join(content), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="module")
def fits():
    return {name: fit(HUDSON_BAY, name, steps=600, seed=0) for name in (None, *MAPS)}


def in_process(capsys, *arguments):
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    return code, *capsys.readouterr()


def table(output):
    """The rows of the printed table as lists of text, by their labels."""
    rows = (re.split(r"\s{2,}", line.strip()) for line in output.splitlines())
    return {label: entries for label, *entries in rows if entries}


def test_the_command_reproduces_the_figures(tmp_path):
    plot = tmp_path / "fits.png"
    command = [sys.executable, "-m", "negdiag_param", "--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
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


def test_the_community_is_an_ordinary_module():
    model, n = Community(3), torch.rand(5, 3)
    assert type(model.linear) is torch.nn.Linear
    torch.testing.assert_close(
        model(n), n * (model.linear.bias + n @ model.linear.weight.T), rtol=1e-5, atol=1e-6
    )


def test_the_unconstrained_fit_is_least_squares(fits):
    design = torch.cat([torch.ones(20, 1, dtype=torch.float64), HUDSON_BAY.midpoints], 1)
    exact = torch.linalg.lstsq(design, HUDSON_BAY.growth).solution.T
    free = fits[None]
    found = torch.cat([free.growth[:, None], free.interactions], 1)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=0)
    residuals = HUDSON_BAY.growth - design @ exact.T
    assert free.ssr == pytest.approx(residuals.square().sum().item())
    assert free.interactions[0, 0] > 0


@pytest.mark.parametrize("map", MAPS)
def test_a_constrained_fit_is_negative_at_all_steps_and_tends_to_the_boundary(fits, map):
    result = fits[map]
    assert result.diagonals.shape == (601, 2)
    assert (result.diagonals < 0).all()
    assert torch.equal(result.diagonals[-1], result.interactions.diagonal())
    # The best fit without a self-interaction of the hare, which the constraint allows to approach.
    assert fits[None].ssr < result.ssr == pytest.approx(1.5859, rel=2e-3)
    assert result.growth.tolist() == pytest.approx([0.549, -0.699], rel=1e-2)
    assert -1e-4 < result.interactions[0, 0] < 0
    assert result.interactions[1, 1].item() == pytest.approx(-0.00529, rel=1e-2)


def test_a_seed_determines_the_fit_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (fit(HUDSON_BAY, "exp", steps=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.diagonals, again.diagonals)
    assert first.ssr == again.ssr
    assert not torch.equal(first.diagonals, other.diagonals)
    assert torch.equal(torch.get_rng_state(), state)


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


def test_a_csv_is_read_with_its_own_units(data, capsys):
    path = data(ROWS)
    code, output, _ = in_process(capsys, "--csv", path, "--steps", "3")
    assert code == 0
    assert "prey on prey" in output
    assert "published" not in output.lower()


def test_columns_may_come_in_any_order_among_others(data):
    text = "\ufeffPredator, note ,PREY,Year\r\n"
    text += "".join(f"{r.split(',')[2]},n,{r.split(',')[1]},{r.split(',')[0]}\r\n" for r in ROWS)
    found = read_csv(data(text.encode()))
    expected = read_csv(data(ROWS))
    assert torch.equal(found.years, expected.years)
    assert torch.equal(found.counts, expected.counts)


def test_units_do_not_matter(data):
    small = read_csv(data(ROWS))
    split = (row.split(",") for row in ROWS)
    scaled = [f"{year},{float(prey) * 1e9},{predator}" for year, prey, predator in split]
    large = read_csv(data(scaled))
    one, two = (fit(d, "softplus", steps=50, seed=0) for d in (small, large))
    assert one.ssr == pytest.approx(two.ssr)
    torch.testing.assert_close(one.interactions[:, 0], two.interactions[:, 0] * 1e9)


MALFORMED = {
    "columns": (b"year,hare,lynx\n1,2,3\n", "got none of the name 'prey'"),
    "empty": (b"", "expected the header year,prey,predator"),
    "text": ([*ROWS, "6,many,3"], "line 7, prey: expected a number, got 'many'"),
    "short": ([*ROWS, "6,4"], "line 7, predator: expected a number, got ''"),
    "zero": ([*ROWS, "6,0,3"], "line 7, prey: expected a positive count, got 0"),
    "negative": ([*ROWS, "6,3,-1"], "line 7, predator: expected a positive count, got -1"),
    "nan": ([*ROWS, "6,nan,3"], "line 7, prey: expected a finite number, got nan"),
    "infinity": ([*ROWS, "6,3,inf"], "line 7, predator: expected a finite number, got inf"),
    "few": (ROWS[:3], "expected at least 4 rows, got 3"),
    "years": ([*ROWS, "5,3,3"], "line 7: expected increasing years, got 5 after 5"),
    "encoding": (b"year,prey,predator\n1,\xff,3\n", "expected UTF-8"),
    "null": (b"year,prey,predator\n1,2\x00,3\n", "line"),
    "overflow": ([*ROWS, "6,1e308,3", "7,1e308,3", "8,1e308,3"], "moderate size"),
}


@pytest.mark.parametrize(("content", "message"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_csv_is_one_clear_line(data, capsys, content, message):
    path = data(content)
    code, output, error = in_process(capsys, "--csv", path)
    assert (code, output) == (2, "")
    assert error.startswith(f"negdiag_param: error: {path!r}: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "message"), [("absent.csv", "No such file"), (".", "Is a directory")]
)
def test_a_csv_that_cannot_be_opened(tmp_path, capsys, path, message):
    code, output, error = in_process(capsys, "--csv", str(tmp_path / path))
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert message in error


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
    done = subprocess.run(command, capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_does_not_load_the_demo():
    script = "import sys, negdiag_param; sys.exit('negdiag_param._hudson_bay' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], timeout=200, check=True)


def test_the_embedded_data_are_the_published_ones():
    assert HUDSON_BAY.counts.shape == (21, 2)
    assert HUDSON_BAY.counts.sum(0).tolist() == pytest.approx([715.7, 423.5])
