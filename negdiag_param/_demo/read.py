"""Reading numbers that people write: a file of observations, and arguments."""

import csv
import itertools
import math
import re
from collections.abc import Iterator

import torch

from negdiag_param._demo.data import Observations

COLUMNS = ("year", "prey", "predator")
SHORTEST = 5  # rows of a window: four growth figures for three unknowns
MOST = 1000  # rows, all of which are fitted in every step
LARGEST = 1e100  # its square is still a number


def read_csv(path: str) -> Observations:
    """Reads a file with a header and the columns year, prey and predator.

    Args:
        path: a file in UTF-8; other columns are ignored.

    Returns:
        Its observations.

    Raises:
        ValueError: if the file cannot be read or cannot be fitted, on one line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = list(_rows(file))
    except OSError as error:
        raise ValueError(f"{path!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r}: expected UTF-8, got {error.reason}") from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path!r}: {error}") from None
    if not SHORTEST < len(table) <= MOST:
        raise ValueError(f"{path!r}: expected {SHORTEST + 1} to {MOST} rows, got {len(table)}")
    columns = torch.tensor(table, dtype=torch.float64)
    return Observations(path, ("prey", "predator"), columns[:, 0], columns[:, 1:])


def _rows(file: Iterator[str]) -> Iterator[list[float]]:
    reader = csv.reader(file)
    lines = itertools.filterfalse(_is_blank, reader)
    header = [name.strip().lower() for name in next(lines, [])]
    for column in COLUMNS:
        if header.count(column) != 1:
            raise ValueError(
                f"expected a header with each of {','.join(COLUMNS)} once, "
                f"got {short(','.join(header))} with {column} {header.count(column)} times"
            )
    places = [header.index(column) for column in COLUMNS]
    before = -math.inf
    for cells in lines:
        where = f"line {reader.line_num}"
        if len(cells) != len(header):
            raise ValueError(
                f"{where}: expected {len(header)} cells as in the header, got {len(cells)}"
            )
        year, *counts = values = [
            number(cells[place], f"{where}, {column}: ")
            for place, column in zip(places, COLUMNS, strict=True)
        ]
        if abs(year) > LARGEST:
            raise ValueError(f"{where}, year: expected at most {LARGEST:g}, got {year:g}")
        if not year - before >= 1 / LARGEST:
            raise ValueError(
                f"{where}: expected years that increase by {1 / LARGEST:g} or more, "
                f"got {exact(year)} after {exact(before)}"
            )
        for column, count in zip(COLUMNS[1:], counts, strict=True):
            if count <= 0:
                raise ValueError(f"{where}, {column}: expected a positive count, got {count:g}")
            if not 1 / LARGEST <= count <= LARGEST:
                raise ValueError(
                    f"{where}, {column}: expected a count from {1 / LARGEST:g} to {LARGEST:g}, "
                    f"got {count:g}"
                )
        before = year
        yield values


def _is_blank(cells: list[str]) -> bool:
    return not any(cell.strip() for cell in cells)


def number(text: str, where: str = "") -> float:
    """The finite number that a text is, in digits as everyone writes them.

    Raises:
        ValueError: if it is none, saying where it stood.
    """
    try:
        if "_" in text or not text.isascii():  # Python would take 30_0, and digits of any script
            raise ValueError
        value = float(text)
    except ValueError:
        raise ValueError(f"{where}expected a number, got {short(text)}") from None
    if not math.isfinite(value):
        raise ValueError(f"{where}expected a finite number, got {value}")
    return value


def whole(text: str) -> int:
    """The whole number that a text is.

    Raises:
        ValueError: if it is none.
    """
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
        raise ValueError(f"expected a whole number, got {short(text)}")
    return int(text)


def exact(value: float) -> str:
    """All digits of a number, without a point if it is whole."""
    return repr(value).removesuffix(".0")


def short(text: str) -> str:
    """A text as it may stand in a message: quoted, and cut if it is long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
