"""Ways to keep a diagonal negative, and problems, many at once, whose solutions have one."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from negdiag_param import NegativeDiagonal, register_negative_diagonal

Range = tuple[float, float]
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class NegSquareplusDiagonal(NegativeDiagonal):
    """``-(x + sqrt(x^2 + 4 c^2)) / 2``, a candidate: its tail is not exponential."""

    width = 0.05

    def map(self, x: Tensor) -> Tensor:
        larger = (x.abs() + (x * x + 4 * self.width**2).sqrt()) / 2  # the root that adds
        return torch.where(x > 0, -larger, -(self.width**2) / larger)

    def inverse(self, d: Tensor) -> Tensor:
        return self.width**2 / d - d


class NegSmoothAbsDiagonal(NegativeDiagonal):
    """``-|x| (|x| + s) / (|x| + delta)``, a candidate: its slope falls to ``s / delta`` at 0."""

    delta, s = 0.05, 0.0005

    def map(self, x: Tensor) -> Tensor:
        return -x.abs() * (x.abs() + self.s) / (x.abs() + self.delta)

    def inverse(self, d: Tensor) -> Tensor:
        # a^2 - b a + d delta = 0 for a = -x; of the two forms of its root the one that adds
        b = -d - self.s
        larger = (b.abs() + (b * b - 4 * self.delta * d).sqrt()) / 2
        return torch.where(b > 0, -larger, self.delta * d / larger)


class Matrices(nn.Module):
    """A weight, or a batch of them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())


@dataclass(frozen=True)
class Way:
    """A map, or what is done to the diagonal of a plain weight after each optimizer step."""

    options: Mapping[str, Any] = field(default_factory=dict)
    by_hand: Callable[[Tensor], object] | None = None

    def model(self, start: Tensor) -> Matrices:
        model = Matrices(start)
        if self.options:
            register_negative_diagonal(model, dims=(-2, -1), **self.options)
        return model

    def after_step(self, model: Matrices) -> None:
        if self.by_hand:
            self.by_hand(diagonal(model.weight.detach()))


def diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def clamp_(entries: Tensor) -> Tensor:
    """To the bound of the maps."""
    return entries.clamp_(max=-torch.finfo(entries.dtype).tiny)


def flip_(entries: Tensor) -> Tensor:
    return entries.copy_(-entries.abs())


START = -0.2  # of entries under a constant force
CLAMP = "clamping by hand"
WAYS = {
    CLAMP: Way(by_hand=clamp_),
    "flipping by hand": Way(by_hand=flip_),
    "clamp": Way({"map": "clamp"}),
    "exp": Way({"map": "exp"}),
    "softplus": Way({"map": "softplus"}),
    "softplus, beta=10": Way({"map": "softplus", "beta": 10.0}),
    "sign_flip": Way({"map": "sign_flip"}),
    "square": Way({"map": "square"}),
    "smooth_abs (not in the package)": Way({"map": NegSmoothAbsDiagonal}),
    "squareplus (not in the package)": Way({"map": NegSquareplusDiagonal}),
}
CANDIDATES = [*WAYS][-3:]  # which have to win a column of the study that all of these lose
RIVALS = ["clamp", "exp", "softplus", "softplus, beta=10"]


def weights(
    way: Way, make: Make, start: Tensor, gradient: Callable[[Tensor, int], Tensor], steps: int
) -> Iterator[Tensor]:
    """Trains a batch of weights, and yields them at the start and after every step.

    ``gradient`` is that of the loss, given the weights and the number of the step.
    """
    model = way.model(start)
    optimizer = make(list(model.parameters()))
    for step in range(steps + 1):
        weight = model.weight
        yield weight.detach().clone()  # by hand, the next step writes into it
        optimizer.zero_grad()
        weight.backward(gradient(weight.detach(), step))
        optimizer.step()
        way.after_step(model)


def optimizers() -> dict[str, Callable[[float], Make]]:
    """By name, given a learning rate."""
    optim = torch.optim
    found: dict[str, Callable[[float], Make]] = {
        "SGD": lambda lr: partial(optim.SGD, lr=lr),
        "momentum": lambda lr: partial(optim.SGD, lr=lr / 10, momentum=0.9),
        "Adam": lambda lr: partial(optim.Adam, lr=lr),
        "AdamW": lambda lr: partial(optim.AdamW, lr=lr, weight_decay=0.01),
        "RMSprop": lambda lr: partial(optim.RMSprop, lr=lr),
    }
    if hasattr(optim, "Muon"):
        found["Muon"] = lambda lr: partial(optim.Muon, lr=lr, weight_decay=0.0)
    return found


def there_and_back(way: str, make: Make, steps: int, more: int) -> tuple[float, float]:
    """How close to zero a constant force pushes entries, and the steps back to the start.

    After ``steps`` steps it pushes downwards, for at most so many ``more``; infinite if it takes
    longer.
    """
    closest = torch.tensor(-math.inf)
    force = torch.eye(2)
    seen = weights(
        WAYS[way],
        make,
        START * force,
        lambda weight, step: -force if step < steps else force,
        steps + more,
    )
    for step, weight in enumerate(seen):
        largest = diagonal(weight).max()
        closest = torch.maximum(closest, largest)  # NaN if an entry is
        if step > steps and largest <= START:
            return closest.item(), step - steps
    return closest.item(), math.inf


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
