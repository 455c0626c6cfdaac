"""Which windows are fitted."""

from itertools import pairwise

import pytest

from negdiag_param._demo.windows import MANY, check, lengths, windows


@pytest.mark.parametrize("rows", [6, 7, 9, 11, 12, 21, 22, 200, 1000])
def test_the_usual_lengths_leave_rows_to_forecast(rows):
    found = lengths(rows)
    assert found == sorted(set(found))
    assert 1 <= len(found) <= 8
    assert found[0] >= 5
    assert found[-1] < rows
    assert len(found) == 1 or found[-1] == rows * 3 // 4


def test_the_usual_lengths_of_the_pelts():
    assert lengths(21) == [8, 9, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("length", range(5, 21))
def test_every_window_of_the_pelts_is_there(length):
    assert windows(21, length) == [range(i, i + length) for i in range(21 - length)]


@pytest.mark.parametrize(("rows", "length"), [(100, 10), (1000, 5), (1000, 999), (51, 10)])
def test_of_too_many_windows_some_are_taken_evenly(rows, length):
    found = windows(rows, length)
    assert MANY / 2 < len(found) <= MANY or len(found) == rows - length
    assert all(len(window) == length and window.stop < rows for window in found)
    assert len({b.start - a.start for a, b in pairwise(found)}) <= 1


@pytest.mark.parametrize("window", [None, 5, 8, 20])
@pytest.mark.parametrize("horizon", [None, 1])
def test_what_the_data_hold_is_taken(window, horizon):
    check(21, window, horizon)


@pytest.mark.parametrize(
    ("window", "horizon", "message"),
    [
        (21, None, "argument --window: expected from 5 to 20 of the 21 rows, got 21"),
        (4, None, "argument --window: expected from 5 to 20 of the 21 rows, got 4"),
        (15, 7, "argument --horizon: expected from 1 to 6, the rows after the first window, got 7"),
        (None, 14, "expected from 1 to 13, the rows after the first window, got 14"),
    ],
)
def test_what_the_data_are_too_short_for_is_refused(window, horizon, message):
    with pytest.raises(ValueError, match=message):
        check(21, window, horizon)
