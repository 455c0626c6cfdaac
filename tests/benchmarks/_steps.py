"""How many steps a way takes, beside another."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.benchmarks._problems import Regressions
from tests.benchmarks._ways import FREE, WAYS, diagonal, weights

Make = Callable[[list[Tensor]], torch.optim.Optimizer]
LEAST = 10  # steps; below it, ratios are noise


def optimizers() -> dict[str, list[Make]]:
    """By name, each at its learning rates."""
    optim = torch.optim
    found = {
        "SGD": _at(optim.SGD, 0.1, 0.3),
        "momentum": _at(optim.SGD, 0.01, 0.03, momentum=0.9),
        "Adam": _at(optim.Adam, 0.01, 0.05),
        "AdamW": _at(optim.AdamW, 0.01, weight_decay=0.01),
        "RMSprop": _at(optim.RMSprop, 0.003, 0.01),
    }
    if hasattr(optim, "Muon"):
        found["Muon"] = _at(optim.Muon, 0.01, weight_decay=0.0)
    return found


def steps_to_stay(way: str, make: Make, problems: Regressions, budget: int) -> Tensor:
    """Steps until each diagonal stays where it belongs; infinite where it does not."""
    best = diagonal(problems.target) if way == FREE else problems.best
    last = torch.zeros(len(best))
    seen = weights(WAYS[way], make, problems.start, problems.gradient, budget)
    for step, weight in enumerate(seen):
        last[~problems.arrived(diagonal(weight), best)] = step + 1
    return last.where(last <= budget, math.inf).clamp(min=LEAST)


@dataclass(frozen=True)
class Comparison:
    """Steps in units of another way's, over the problems that the other solved."""

    mean: float  # geometric
    error: float  # two standard errors, as a factor
    worst: float
    never: float  # the share that did not arrive; they count with the whole budget

    @classmethod
    def of(cls, steps: Tensor, others: Tensor, budget: int) -> "Comparison":
        solved = others.isfinite()
        steps, others = steps[solved], others[solved]
        logs = (steps.clamp(max=budget) / others).log()
        error = 2 * logs.std() / math.sqrt(len(logs)) if len(logs) > 1 else logs.new_zeros(())
        worst = (steps / others).max().item() if len(logs) else math.nan
        never = (~steps.isfinite()).double().mean().item()
        return cls(logs.mean().exp().item(), error.exp().item(), worst, never)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return ""
        within = f"±{100 * (self.error - 1):.0f} %"
        worst = f"never: {100 * self.never:.0f} %" if self.never else f"worst {self.worst:.1f}"
        return f"{self.mean:.2f} {within}, {worst}"


def _at(cls: type[torch.optim.Optimizer], *rates: float, **options: float) -> list[Make]:
    return [partial(cls, lr=lr, **options) for lr in rates]
