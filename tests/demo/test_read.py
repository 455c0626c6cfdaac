"""Files of one's own: what is read, and what is refused."""

import pytest
import torch

from negdiag_param._demo.data import HUDSON_BAY
from negdiag_param._demo.read import MOST, number, read_csv, whole
from tests.demo.command import in_process

ROWS = ["1,10,5", "2,12,6", "3,9,8", "4.5,7,7", "5,8,4", "6,8,5"]
HEADER = "year,prey,predator\n"
WRITTEN = HEADER + "\n".join(ROWS)


def test_the_embedded_data_are_the_published_ones():
    assert HUDSON_BAY.counts.shape == (21, 2)
    assert HUDSON_BAY.counts.sum(0).tolist() == pytest.approx([715.7, 423.5])


REORDERED = "Predator, note ,PREY,Year\n"
REORDERED += "".join(f"{r.split(',')[2]},n,{r.split(',')[1]},{r.split(',')[0]}\n" for r in ROWS)
SAME = {
    "in another order, among others": REORDERED,
    "with a byte order mark": "\ufeff" + WRITTEN,
    "with lines as on other systems": WRITTEN.replace("\n", "\r\n"),
    "with blank lines": "\n" + WRITTEN.replace("\n", "\n\n") + "\n,,\n",
    "with spaces and exponents": WRITTEN.replace(",9,", ", 90e-1 ,"),
    "quoted": WRITTEN.replace(",9,", ',"9",'),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_the_same_data_may_be_written_in_many_ways(written, text):
    found, expected = read_csv(written(text)), read_csv(written(WRITTEN))
    assert torch.equal(found.years, expected.years)
    assert torch.equal(found.counts, expected.counts)


ONCE = "expected a header with each of year,prey,predator once, got "
MALFORMED = {
    "columns": ("year,hare,lynx\n1,2,3\n", f"{ONCE}'year,hare,lynx' with prey 0 times"),
    "twice": ("year,prey,Prey,predator\n", f"{ONCE}'year,prey,prey,predator' with prey 2 times"),
    "semicolons": (WRITTEN.replace(",", ";"), f"{ONCE}'year;prey;predator' with year 0 times"),
    "empty": ("", f"{ONCE}'' with year 0 times"),
    "only a mark": ("\ufeff", f"{ONCE}'' with year 0 times"),
    "long": ("a" * 5000, f"{ONCE}'{'a' * 57}...' with"),
    "text": ([*ROWS, "7,many,3"], "line 8, prey: expected a number, got 'many'"),
    "long text": ([*ROWS, f"7,{'m' * 5000},3"], f"expected a number, got '{'m' * 57}...'"),
    "missing": ([*ROWS, "7,,3"], "line 8, prey: expected a number, got ''"),
    "short": ([*ROWS, "7,4"], "line 8: expected 3 cells as in the header, got 2"),
    "decimal comma": ([*ROWS, "7,4,5,3"], "line 8: expected 3 cells as in the header, got 4"),
    "underscore": ([*ROWS, "7,30_0,3"], "line 8, prey: expected a number, got '30_0'"),
    "other digits": ([*ROWS, "7,٣,3"], "line 8, prey: expected a number, got '٣'"),
    "zero": ([*ROWS, "7,0,3"], "line 8, prey: expected a positive count, got 0"),
    "negative": ([*ROWS, "7,3,-1"], "line 8, predator: expected a positive count, got -1"),
    "nan": ([*ROWS, "7,nan,3"], "line 8, prey: expected a finite number, got nan"),
    "infinity": ([*ROWS, "7,3,inf"], "line 8, predator: expected a finite number, got inf"),
    "no year": ([*ROWS, "nan,3,3"], "line 8, year: expected a finite number, got nan"),
    "huge": ([*ROWS, "7,1e101,3"], "prey: expected a count from 1e-100 to 1e+100, got 1e+101"),
    "tiny": ([*ROWS, "7,1,1e-101"], "predator: expected a count from 1e-100 to 1e+100, got"),
    "far": ([*ROWS, "1e300,1,1"], "line 8, year: expected at most 1e+100, got 1e+300"),
    "same year": ([*ROWS, "6,3,3"], "increase by 1e-100 or more, got 6 after 6"),
    "earlier": ([*ROWS, "5.25,3,3"], "increase by 1e-100 or more, got 5.25 after 6"),
    "few": (ROWS[:5], f"expected 6 to {MOST} rows, got 5"),
    "many": ([f"{i},1,1" for i in range(MOST + 1)], f"expected 6 to {MOST} rows, got {MOST + 1}"),
    "encoding": (b"year,prey,predator\n1,\xff,3\n", "expected UTF-8"),
    "null": (b"year,prey,predator\n1,2\x00,3\n", "line"),
}


@pytest.mark.parametrize(("content", "message"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_csv_is_one_clear_line(written, capsys, content, message):
    path = written(content)
    code, output, error = in_process(capsys, "--csv", path)
    assert (code, output) == (2, "")
    assert error.startswith(f"negdiag_param: error: {path!r}: ")
    assert message in error
    assert error.count("\n") == 1
    assert len(error) < len(path) + 250


@pytest.mark.parametrize(
    ("path", "message"), [("absent.csv", "No such file"), (".", "Is a directory")]
)
def test_a_csv_that_cannot_be_opened(tmp_path, capsys, path, message):
    code, output, error = in_process(capsys, "--csv", str(tmp_path / path))
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert message in error


@pytest.mark.parametrize("text", ["", "x", "1_0", "٣", "0x1", "1,5", "1 0"])
@pytest.mark.parametrize(("convert", "kind"), [(number, "a number"), (whole, "a whole number")])
def test_numbers_are_digits_as_everyone_writes_them(convert, kind, text):
    with pytest.raises(ValueError, match=f"^expected {kind}, got '{text}'$"):
        convert(text)


@pytest.mark.parametrize("text", ["7.0", "1e3", "9" * 5000])
def test_a_whole_number_has_nothing_else(text):
    with pytest.raises(ValueError, match=r"^expected a whole number, got '"):
        whole(text)
