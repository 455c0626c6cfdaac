"""The tables of the study of maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.benchmarks._problems import Regressions, joined, regressions
from tests.benchmarks._recurrent import recurrent_error
from tests.benchmarks._report import Table, tell
from tests.benchmarks._steps import Comparison, optimizers, steps_to_stay
from tests.benchmarks._ways import CLAMP, FREE, WAYS, diagonal, weights


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    sizes: Sequence[int] = (8, 32)
    seeds: int = 8
    budget: int = 1500
    force: int = 1000
    recurrent: int = 150


LAYERS = [("default", target) for target in ("inside", "as the start", "half beyond")]
OTHERS = [
    ("tiny", "inside"),
    ("large", "inside"),
    ("default", "near zero"),
    ("default", "large"),
    ("default", "mixed"),
    ("default", "beyond"),
]


def default_layers(effort: Effort, seed: int) -> Table:
    """The table that the default map is chosen by."""
    table = Table(
        "Steps of default-initialised Linear layers",
        "In units of clamping after each step: geometric mean, worst.",
    )
    everything: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, makes in optimizers().items():
        tell(f"default layers, {name}")
        # Muon trains one matrix after the other.
        sizes, seeds = (effort.sizes[:1], 4) if name == "Muon" else (effort.sizes, effort.seeds)
        steps = {way: [] for way in WAYS}
        for n in sizes:
            problems = _all(LAYERS, n, seeds, seed)
            for way in WAYS:
                steps[way] += [steps_to_stay(way, make, problems, effort.budget) for make in makes]
        column = {way: torch.cat(found) for way, found in steps.items()}
        table.put(name, _compared(column, effort.budget))
        for way, found in column.items():
            everything.setdefault(way, []).append((found, column[CLAMP]))
    for way, pairs in everything.items():
        found, others = (torch.cat(part) for part in zip(*pairs, strict=True))
        table.put("all", {way: str(Comparison.of(found, others, effort.budget))})
    return table


def other_problems(effort: Effort, seed: int, optimizer: str) -> Table:
    """Other starts and targets, one optimizer."""
    table = Table(f"Steps from other starts to other targets, {optimizer}", "As above.")
    makes = optimizers()[optimizer]
    for start, target in OTHERS:
        tell(f"{start} to {target}, {optimizer}")
        problems = _all([(start, target)], effort.sizes[0], 2 * effort.seeds, seed)
        steps = {
            way: torch.cat([steps_to_stay(way, make, problems, effort.budget) for make in makes])
            for way in WAYS
        }
        table.put(f"{start} to {target}", _compared(steps, effort.budget))
    return table


def stable_rates(effort: Effort, seed: int) -> Table:
    """The largest learning rate of SGD that does not diverge."""
    table = Table(
        "Largest stable learning rate of SGD", "In units of the unconstrained weight's: median."
    )
    rates = 1.15 ** torch.arange(-40, 20.0)
    for target in ("inside", "large", "beyond"):
        tell(f"stable rates, {target}")
        problems = _all([("default", target)], effort.sizes[0], effort.seeds, seed)
        largest = {way: _largest_rate(way, problems, rates) for way in WAYS}
        table.put(target, {w: (r / largest[FREE]).median().item() for w, r in largest.items()})
    return table


def boundary(effort: Effort) -> Table:
    """A constant force towards the boundary, which then turns."""
    table = Table(
        f"Entries that start at -0.2, pushed upwards for {effort.force:,} steps, then downwards",
        "How far below the boundary they are then (median), and the steps to come back.",
    )

    def force(weight: Tensor, step: int) -> Tensor:
        return torch.eye(2).expand_as(weight) * (-1.0 if step < effort.force else 1.0)

    start = -0.2 * torch.eye(2).expand(20, 2, 2)
    for cls in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop):
        tell(f"boundary, {cls.__name__}")
        for way in WAYS:
            if way == FREE:
                continue

            make = partial(cls, lr=0.01)
            seen = torch.stack([
                diagonal(w) for w in weights(WAYS[way], make, start, force, 4 * effort.force)
            ])
            near, after = seen[effort.force // 2 : effort.force], seen[effort.force :]
            back = (after <= -0.2).all(-1).all(-1).nonzero()
            steps = str(back[0].item()) if len(back) else f"more than {3 * effort.force}"
            table.put(cls.__name__, {way: f"{-near.median().item():.0e}, back in {steps}"})
    return table


def recurrent_network(effort: Effort, seed: int) -> Table:
    """A continuous-time RNN learns another's trajectories."""
    table = Table(
        "A continuous-time RNN of 16 units, dx = A x + W tanh(x) + B u, learns another's output",
        f"Error after {effort.recurrent} steps, in units of clamping: geometric mean over seeds.",
    )
    for name, lr in (("SGD", 0.3), ("Adam", 0.01)):
        errors = {}
        for way in WAYS:
            tell(f"recurrent network, {name}, {way}")
            errors[way] = torch.stack([
                recurrent_error(way, name, lr, effort.recurrent, seed + k)
                for k in range(min(effort.seeds, 3))
            ])
        ratios = {w: (e / errors[CLAMP]).log().mean().exp().item() for w, e in errors.items()}
        table.put(f"{name}, lr {lr}", ratios)
    return table


def _all(kinds: list[tuple[str, str]], n: int, count: int, seed: int) -> Regressions:
    generator = torch.Generator().manual_seed(1000 * seed + n)
    return joined([regressions(n, count, *kind, generator) for kind in kinds])


def _compared(steps: dict[str, Tensor], budget: int) -> dict[str, str]:
    return {way: str(Comparison.of(found, steps[CLAMP], budget)) for way, found in steps.items()}


def _largest_rate(way: str, problems: Regressions, rates: Tensor) -> Tensor:
    """Of every problem. All rates are tried at once, as problems with steps of their own."""
    many = Regressions(*(part.repeat_interleave(len(rates), 0) for part in problems))
    rate = rates.repeat(len(problems.start))[:, None, None]

    def gradient(weight: Tensor, step: int) -> Tensor:
        return rate * many.gradient(weight)

    make = partial(torch.optim.SGD, lr=1.0)
    first, *_, last = map(many.loss, weights(WAYS[way], make, many.start, gradient, 300))
    stays = last <= first
    return torch.stack([
        rates[: int(row.cumprod(0).sum())][-1] for row in stays.int().view(-1, len(rates))
    ])
