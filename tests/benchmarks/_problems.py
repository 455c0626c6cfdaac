"""Linear regressions whose weight shall have a negative diagonal, many at once."""

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from tests.benchmarks._ways import BOUNDARY, diagonal

Range: TypeAlias = tuple[float, float]


class Regressions(NamedTuple):
    """``loss = tr (W - T) C (W - T)^T / 2``, with a target ``T`` and inputs of covariance ``C``."""

    start: Tensor
    target: Tensor
    covariance: Tensor
    best: Tensor  # the diagonal of the constrained optimum

    def gradient(self, weight: Tensor, step: int = 0) -> Tensor:
        return (weight - self.target) @ self.covariance

    def loss(self, weight: Tensor) -> Tensor:
        """That of each problem."""
        return (self.gradient(weight) * (weight - self.target)).sum((-2, -1)) / 2

    def arrived(self, diagonals: Tensor, best: Tensor) -> Tensor:
        """Whether they are within 5 % of the best ones, in units of what the data ask for."""
        return (diagonals - best).norm(dim=-1) <= 0.05 * diagonal(self.target).norm(dim=-1)


def regressions(
    n: int, count: int, start: str, target: str, generator: torch.Generator
) -> Regressions:
    """Fresh ones; off the diagonal, starts and targets are those of a default-initialised layer."""
    width = 1 / math.sqrt(n)
    matrices = [(2 * torch.rand(count, n, n, generator=generator) - 1) * width for _ in range(2)]
    for matrix, values in zip(matrices, (STARTS[start], TARGETS[target]), strict=True):
        if values:
            diagonal(matrix).copy_(-_spread(values, diagonal(matrix).shape, generator))
    first, goal = matrices
    diagonal(first).copy_(-diagonal(first).abs())
    if target == "as the start":
        diagonal(goal).copy_(-diagonal(goal).abs())
    inputs = torch.randn(count, n, 4 * n, generator=generator)
    covariance = inputs @ inputs.mT / (4 * n)
    return Regressions(first, goal, covariance, _best(goal, covariance))


def joined(parts: list[Regressions]) -> Regressions:
    """All of them in one batch."""
    return Regressions(*(torch.cat(column) for column in zip(*parts, strict=True)))


# The sizes of the diagonal entries; None is the default initialisation. All are negative, but
# those of "half beyond", which have the signs of an initialisation, and of "beyond".
STARTS: dict[str, Range | None] = {"default": None, "tiny": (1e-4, 1e-2), "large": (1.0, 10.0)}
TARGETS: dict[str, Range | None] = {
    "inside": (0.5, 1.5),
    "as the start": None,
    "half beyond": None,
    "near zero": (1e-3, 1e-1),
    "large": (5.0, 20.0),
    "mixed": (1e-3, 10.0),
    "beyond": (-0.5, -0.1),
}


def _spread(values: Range, shape: torch.Size, generator: torch.Generator) -> Tensor:
    low, high = values
    drawn = torch.rand(shape, generator=generator)
    if 0 < low < high / 5:
        return low * (high / low) ** drawn
    return low + (high - low) * drawn


def _best(target: Tensor, covariance: Tensor) -> Tensor:
    """By projected gradients."""
    step = 1 / torch.linalg.eigvalsh(covariance)[:, -1, None, None]
    weight = target.clone()
    for _ in range(1500):
        diagonal(weight).clamp_(max=BOUNDARY)
        weight -= step * ((weight - target) @ covariance)
    return diagonal(weight).clamp(max=BOUNDARY)
