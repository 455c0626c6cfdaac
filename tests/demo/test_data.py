"""The pelts, and files of one's own."""

import pytest
import torch

from negdiag_param._demo.data import HUDSON_BAY, read_csv
from negdiag_param._demo.fit import fit
from tests.demo.command import in_process

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


def test_the_embedded_data_are_the_published_ones():
    assert HUDSON_BAY.counts.shape == (21, 2)
    assert HUDSON_BAY.counts.sum(0).tolist() == pytest.approx([715.7, 423.5])


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
