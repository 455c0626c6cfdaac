"""Ways to keep a diagonal negative: the ready maps, what people do by hand, and candidates."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from negdiag_param import NegativeDiagonal, register_negative_diagonal

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
