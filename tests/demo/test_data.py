"""The data are the published ones; files of one's own are read, or refused with a reason."""

import pytest
import torch

from negdiag_param._demo.data import ALPHA_PINENE, HUDSON_BAY, read_csv

ROWS = "year,hare,lynx\n1900,30,4\n1901,47.2,6.1\n1902,70.2,9.8\n1903.5,77,35\n1905,36,59\n"


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
