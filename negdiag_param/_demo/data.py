"""Counts of a predator and its prey: the pelts of the Hudson Bay, and files of one's own."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS = ("year", "prey", "predator")


@dataclass(frozen=True)
class Observations:
    """Counts of two species, a row per year: the prey first, then the predator."""

    source: str
    species: tuple[str, str]
    years: Tensor
    counts: Tensor

    @property
    def midpoints(self) -> Tensor:
        """The mean counts of neighbouring years."""
        return self.counts[1:] / 2 + self.counts[:-1] / 2

    @property
    def growth(self) -> Tensor:
        """The growth of the logarithms from one year to the next, per year."""
        return self.counts.log().diff(dim=0) / self.years.diff()[:, None]


# Thousands of pelts bought by the Hudson's Bay Company (Hewitt 1921, as tabulated in Howard 2009).
HARES = """
    30 47.2 70.2 77.4 36.3 20.6 18.1 21.4 22 25.4 27.1
    40.3 57 76.6 52.3 19.5 11.2 7.6 14.6 16.2 24.7
"""
LYNXES = """
    4 6.1 9.8 35.2 59.4 41.7 19 13 8.3 9.1 7.4
    8 12.3 19.5 45.7 51.1 29.7 15.8 9.7 10.1 8.6
"""
HUDSON_BAY = Observations(
    source="Hudson Bay pelts, in thousands",
    species=("hare", "lynx"),
    years=torch.arange(1900, 1921, dtype=torch.float64),
    counts=torch.tensor(
        [[float(count) for count in row.split()] for row in (HARES, LYNXES)], dtype=torch.float64
    ).T,
)


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
            rows = list(_rows(csv.DictReader(file)))
    except OSError as error:
        raise ValueError(f"{path!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r}: expected UTF-8, got {error.reason}") from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path!r}: {error}") from None
    if len(rows) < 4:
        raise ValueError(f"{path!r}: expected at least 4 rows, got {len(rows)}")
    table = torch.tensor(rows, dtype=torch.float64)
    data = Observations(path, ("prey", "predator"), table[:, 0], table[:, 1:])
    mean = data.midpoints.mean(0)
    if not all(t.isfinite().all() for t in (data.growth, mean, 1 / mean)):
        raise ValueError(f"{path!r}: expected numbers of moderate size, got some that overflow")
    return data


def _rows(reader: "csv.DictReader[str]") -> Iterator[list[float]]:
    reader.fieldnames = header = [name.strip().lower() for name in reader.fieldnames or ()]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise ValueError(
            f"expected the header {','.join(COLUMNS)}, got none of the name {missing[0]!r}"
        )
    before = -math.inf
    for row in reader:
        where = f"line {reader.line_num}"
        values = [_number(row[column], f"{where}, {column}") for column in COLUMNS]
        year, *counts = values
        if year <= before:
            raise ValueError(f"{where}: expected increasing years, got {year:g} after {before:g}")
        for column, count in zip(COLUMNS[1:], counts, strict=True):
            if count <= 0:
                raise ValueError(f"{where}, {column}: expected a positive count, got {count:g}")
        before = year
        yield values


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise ValueError(f"{where}: expected a number, got {text or ''!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}")
    return value
