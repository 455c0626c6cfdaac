"""Measured time series: a chemical reaction, a predator and its prey, or a file of one's own."""

import csv
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Data:
    """Values of some states over time.

    The model of amounts is ``dx/dt = weight @ x``. That of counts is the generalised Lotka-Volterra
    equations, ``d log n/dt = weight @ [n, 1]``, whose last column holds the growth rates.
    """

    name: str
    time: str  # the unit of the times
    times: Tensor
    values: Tensor  # of shape (times, states)
    mask: Tensor  # of the weight's shape: one where the column acts on the row, else zero
    are_counts: bool

    def transform(self, values: Tensor) -> Tensor:
        """What the weight gives the rates of change of."""
        return values.log() if self.are_counts else values

    def inputs(self, values: Tensor) -> Tensor:
        """What the weight is multiplied with."""
        columns = self.mask.shape[1]
        return F.pad(values, (0, 1), value=1.0) if self.are_counts else values[..., :columns]


def matrix(text: str) -> Tensor:
    """Numbers as a matrix, its rows separated by semicolons."""
    rows = [[float(number) for number in row.split()] for row in text.split(";")]
    return torch.tensor(rows, dtype=torch.float64)


# Fuguitt & Hawkins 1947, J. Am. Chem. Soc. 69, 319; the scheme is that of Box et al. 1973,
# Technometrics 15, 33: alpha-pinene becomes dipentene and allo-ocimene; allo-ocimene becomes
# pyronene and, there and back, its dimer. Minutes, then per cent of alpha-pinene, allo-ocimene,
# dimer, dipentene and pyronene.
REACTION = matrix("""
    0    1230  3060 4920 7800 10680 15030 22620 36420 ;
    100  88.35 76.4 65.1 50.4 37.5  25.9  14    4.5   ;
    0    2.3   4.5  5.3  6    6     5.9   5.1   3.8   ;
    0    1.75  2.8  5.8  9.3  12    17    21    25.7  ;
    0    7.3   15.6 23.1 32.9 42.7  49.1  57.4  63.1  ;
    0    0.4   0.7  1.1  1.5  1.9   2.2   2.6   2.9
""")
SCHEME = matrix("1 0 0; 1 1 1; 0 1 1; 1 0 0; 0 1 0")  # the last two act on none
ALPHA_PINENE = Data("alpha-pinene", "day", REACTION[0] / 1440, REACTION[1:].T, SCHEME, False)

# Thousands of pelts bought by the Hudson's Bay Company, hares and lynxes from 1900 to 1920:
# Hewitt 1921, as tabulated in Howard 2009.
PELTS = matrix("""
    30 47.2 70.2 77.4 36.3 20.6 18.1 21.4 22 25.4 27.1 40.3 57 76.6 52.3 19.5 11.2 7.6 14.6 16.2
    24.7 ;
    4 6.1 9.8 35.2 59.4 41.7 19 13 8.3 9.1 7.4 8 12.3 19.5 45.7 51.1 29.7 15.8 9.7 10.1 8.6
""")
YEARS = torch.arange(1900, 1921, dtype=torch.float64)
HUDSON_BAY = Data("Hudson Bay", "year", YEARS, PELTS.T, matrix("1 1 1; 1 1 1"), True)


def read_csv(path: str) -> Data:
    """Reads counts of species: a header, then rows of a time and one count for each species.

    Raises:
        ValueError: if the file cannot be fitted, saying where and why.
    """
    rows: list[list[float]] = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if len(header) < 2:
                raise ValueError(f"expected commas, as in year,hare,lynx, found {header}")
            for cells in filter(any, reader):
                time, *counts = map(float, cells)
                last = rows[-1][0] if rows else -1e12
                if len(cells) != len(header):
                    raise ValueError(f"expected {len(header)} numbers, found {len(cells)}")
                if not last < time < 1e12:
                    found = f"found {time:g} after {last:g}; sort the rows"
                    raise ValueError(f"expected {header[0]} to increase from row to row, {found}")
                if not all(0 < count < 1e12 for count in counts):
                    raise ValueError(f"expected counts above zero, found {cells[1:]}")
                rows.append([time, *counts])
            if len(rows) < len(header) + 2:
                raise ValueError(f"expected {len(header) + 2} rows or more, found {len(rows)}")
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    table = torch.tensor(rows, dtype=torch.float64)
    mask = torch.ones(len(header) - 1, len(header), dtype=torch.float64)
    return Data(path, header[0], table[:, 0], table[:, 1:], mask, True)
