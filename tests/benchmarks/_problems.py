"""Problems whose solution has a negative diagonal, many at once."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from tests.benchmarks._ways import WAYS, clamp_, diagonal

Range: TypeAlias = tuple[float, float]


class Regressions(NamedTuple):
    """``loss = tr (W - T) C (W - T)^T / 2``, with a target ``T`` and inputs of covariance ``C``."""

    start: Tensor
    target: Tensor
    covariance: Tensor
    best: Tensor  # the diagonal of the constrained optimum
    tolerance: Tensor  # how far from there a diagonal entry counts as arrived

    def gradient(self, weight: Tensor, step: int = 0) -> Tensor:
        return (weight - self.target) @ self.covariance

    def arrived(self, weight: Tensor) -> Tensor:
        """Whether each of the weights has all of its diagonal where it belongs."""
        return ((diagonal(weight) - self.best).abs() <= self.tolerance).all(-1)

    def each(self) -> list["Regressions"]:
        """One after the other."""
        return [Regressions(*parts) for parts in zip(*self, strict=True)]

    def scaled(self, rates: Sequence[float]) -> "Regressions":
        """All of them at each rate, in units of the largest stable one, for an SGD of rate 1."""
        largest = 2 / torch.linalg.eigvalsh(self.covariance)[:, -1, None, None]
        return joined([self._replace(covariance=r * largest * self.covariance) for r in rates])


class Rates(NamedTuple):
    """``exp(d t)`` is fitted at times over orders of magnitude, as are the rates ``d``."""

    start: Tensor
    best: Tensor
    times: Tensor

    def gradient(self, weight: Tensor, step: int = 0) -> Tensor:
        curves, true_curves = (
            (d[..., None] * self.times).exp() for d in (diagonal(weight), self.best)
        )
        return torch.diag_embed((2 * (curves - true_curves) * curves * self.times).mean(-1))

    def arrived(self, weight: Tensor) -> Tensor:
        return ((diagonal(weight) / self.best - 1).abs() <= 0.05).all(-1)


def regressions(
    n: int, count: int, generator: torch.Generator, start: Range | None, target: Range | None
) -> Regressions:
    """Fresh ones between layers in their default initialisation, or with diagonals of these sizes.

    Negative sizes are positive entries. What is default in the target has both signs.
    """
    width = 1 / math.sqrt(n)
    first, goal = ((2 * torch.rand(count, n, n, generator=generator) - 1) * width for _ in range(2))
    for matrix, sizes in ((first, start), (goal, target)):
        if sizes:
            diagonal(matrix).copy_(-spread(sizes, (count, n), generator))
    diagonal(first).copy_(-diagonal(first).abs())
    inputs = torch.randn(count, n, 4 * n, generator=generator)
    covariance = inputs @ inputs.mT / (4 * n)
    size = diagonal(goal).square().mean(-1, keepdim=True).sqrt().expand(-1, n)
    return Regressions(first, goal, covariance, _best(goal, covariance), 0.05 * size)


def single_entries(targets: Sequence[float]) -> Regressions:
    """Weights of one entry, over a grid of curvatures and of starts, near and far."""
    curvatures = torch.logspace(math.log10(0.3), 1, 6)
    grid = torch.cartesian_prod(curvatures, torch.tensor(targets), -torch.tensor([0.01, 0.1, 1.0]))
    curvature, target, start = grid.T[..., None, None]
    best = clamp_(diagonal(target).clone())
    tolerance = 0.05 * torch.where(target < 0, target, start).abs()[..., 0]
    return Regressions(start, target, curvature, best, tolerance)


def fitted_rates(count: int, generator: torch.Generator) -> Rates:
    """From 0.001 to 10, started up to ten times too high or too low."""
    best = -spread((1e-3, 10.0), (count, 8), generator)
    factors = 10 ** (2 * torch.rand(best.shape, generator=generator) - 1)
    return Rates(torch.diag_embed(best * factors), best, torch.logspace(-3, 4, 30))


def recurrent_errors(way: str, decay: float, lr: float, budget: int, seed: int) -> Tensor:
    """What Adam leaves of the error of a continuous-time RNN, for each of four networks.

    It learns the output of another, whose entries on the diagonal of A are about ``-decay``.
    """
    generator = torch.Generator().manual_seed(seed)
    networks, n, dt = 4, 16, 0.1

    def draw(rows: int) -> Tensor:
        return torch.randn(networks, rows, n, generator=generator) / math.sqrt(n)

    inputs = torch.randn(15, networks, 32, n, generator=generator)
    a, *others = (draw(n) for _ in range(6))
    teacher, student = (a - decay * torch.eye(n), *others[:2]), others[2:]
    diagonal(student[0]).copy_(-diagonal(student[0]).abs())

    def states(a: Tensor, w: Tensor, b: Tensor) -> Iterator[Tensor]:
        x = inputs.new_zeros(inputs.shape[1:])
        for u in inputs:
            x = x + dt * (x @ a.mT + x.tanh() @ w.mT + u @ b.mT)
            yield x

    target = torch.stack(list(states(*teacher)))
    model = WAYS[way].model(student[0])
    rest = [part.requires_grad_() for part in student[1:]]
    optimizer = torch.optim.Adam([*model.parameters(), *rest], lr=lr)
    for _ in range(budget):
        optimizer.zero_grad()
        found = torch.stack(list(states(model.weight, *rest)))
        errors = (found - target).square().mean((0, 2, 3))
        errors.sum().backward()
        optimizer.step()
        WAYS[way].after_step(model)
    return errors.detach()


def joined(parts: list[Regressions]) -> Regressions:
    """All of them in one batch."""
    return Regressions(*(torch.cat(column) for column in zip(*parts, strict=True)))


def spread(sizes: Range, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Evenly, or by orders of magnitude where the sizes go over these."""
    low, high = sizes
    drawn = torch.rand(shape, generator=generator)
    return low * (high / low) ** drawn if 0 < low < high / 5 else low + (high - low) * drawn


def _best(target: Tensor, covariance: Tensor) -> Tensor:
    """By projected gradients."""
    step = 1 / torch.linalg.eigvalsh(covariance)[:, -1, None, None]
    weight = target.clone()
    for _ in range(1500):
        clamp_(diagonal(weight))
        weight -= step * ((weight - target) @ covariance)
    return clamp_(diagonal(weight))
