"""Counts of a predator and its prey: the pelts of the Hudson Bay, or a file of one's own."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
