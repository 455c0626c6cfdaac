"""How many steps a way takes, beside another."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from tests.benchmarks._problems import Rates, Regressions
from tests.benchmarks._ways import WAYS, Make, diagonal, weights

START = -0.2
LEAST = 10  # steps; below it, ratios are noise


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


def steps_to_stay(way: str, make: Make, problems: Regressions | Rates, budget: int) -> Tensor:
    """Steps until each diagonal stays where it belongs; infinite where it does not."""
    last = torch.zeros(problems.start.shape[:-2])
    seen = weights(WAYS[way], make, problems.start, problems.gradient, budget)
    for step, weight in enumerate(seen):
        last[~problems.arrived(weight)] = step + 1
    return last.where(last <= budget, math.inf).clamp(min=LEAST)


def steps_at(
    way: str, optimizer: str, rates: Sequence[float], problems: Regressions | Rates, budget: int
) -> Tensor:
    """The same at each learning rate; SGD's and momentum's in units of SGD's largest stable one."""
    make = optimizers()[optimizer]
    if isinstance(problems, Regressions) and optimizer in {"SGD", "momentum"}:
        found = [steps_to_stay(way, make(1.0), problems.scaled(rates), budget)]
    else:  # Muon takes matrices, one by one
        parts = problems.each() if optimizer == "Muon" else [problems]
        found = [steps_to_stay(way, make(rate), part, budget) for rate in rates for part in parts]
    return torch.stack(found).view(len(rates), -1)


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


class Score(float):
    """Steps in units of another way's, and the share that never arrived.

    The mean is geometric; what never arrived counts with the whole budget.
    """

    never: float

    @classmethod
    def of(cls, steps: Tensor, others: Tensor, budget: int) -> "Score":
        score = cls(mean(steps, budget) / mean(others, budget))
        score.never = steps.isinf().double().mean().item()
        return score

    def __format__(self, spec: str) -> str:
        return str(self)

    def __str__(self) -> str:
        ratio = f"{float(self):.0f}" if self >= 9.95 else f"{float(self):.2f}"
        return ratio + f" ({math.ceil(100 * self.never)} %)" * (self.never > 0)


def mean(steps: Tensor, budget: int) -> float:
    return steps.double().clamp(max=budget).log().mean().exp().item()
