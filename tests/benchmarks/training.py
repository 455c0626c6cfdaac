"""What the maps do to training: ``python -m tests.benchmarks.training --help``.

Clamping by hand is the unit. The rule for maps, which was there before the figures: besides clamp,
exp, softplus and sign_flip, one stays if it wins a column that clamp, exp and softplus all lose by
a factor of 1.5. The last lines are its verdict.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.benchmarks import _ways
from tests.benchmarks._measure import Table, tell
from tests.benchmarks._ways import CANDIDATES, CLAMP, RIVALS, WAYS, Make, Regressions, optimizers

Problems = Regressions | _ways.Rates
LEAST = 10  # steps; below it, ratios are noise
SHARED = {
    "SGD": (0.1, 0.5, 0.95),
    "momentum": (0.1, 0.5),
    "Adam": (0.01, 0.03, 0.1),
    "AdamW": (0.01, 0.03, 0.1),
    "RMSprop": (0.003, 0.01),
    "Muon": (0.01, 0.03),
}
# Between diagonal entries of these sizes; None is the default initialisation.
INSIDE = (0.5, 1.5)
LAYERS = {"inside": (None, INSIDE), "default": (None, None)}
KINDS = {
    **LAYERS,
    "beyond": (None, (-0.5, -0.1)),
    "near zero": (None, (1e-3, 1e-1)),
    "large": (None, (5.0, 20.0)),
    "mixed": (None, (1e-3, 10.0)),
    "tiny to inside": ((1e-4, 1e-2), INSIDE),
    "large to inside": ((1.0, 10.0), INSIDE),
}
ENTRIES = {
    "inside": (-2.0, -1.5, -1.0, -0.5, -0.25),
    "on the boundary": (0.0,),
    "beyond": (0.25, 0.5, 1.0, 1.5, 2.0),
}
UNIT = "In units of clamping by hand: geometric mean (share that never arrives)."
RATES = f"{UNIT} SGD's and momentum's rates are in units of the largest at which SGD is stable."


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    ways: Sequence[str] = tuple(WAYS)
    sizes: Sequence[int] = (8, 32)
    count: int = 16
    budget: int = 1500
    settle: int = 3000
    # Adam's rates, from which each way may choose its best
    tried: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    force: int = 1000
    recurrent: int = 300


QUICK = Effort(
    sizes=(8,), count=1, budget=40, tried=(0.01, 0.03, 0.1), settle=40, force=40, recurrent=2
)


def steps_to_stay(way: str, make: Make, problems: Problems, budget: int) -> Tensor:
    """Steps until each diagonal stays where it belongs; infinite where it does not."""
    last = torch.zeros(problems.start.shape[:-2])
    seen = _ways.weights(WAYS[way], make, problems.start, problems.gradient, budget)
    for step, weight in enumerate(seen):
        last[~problems.arrived(weight)] = step + 1
    return last.where(last <= budget, math.inf).clamp(min=LEAST)


def steps_at(
    way: str, optimizer: str, rates: Sequence[float], problems: Problems, budget: int
) -> Tensor:
    """The same at each learning rate; SGD's and momentum's in units of SGD's largest stable one."""
    make = optimizers()[optimizer]
    if isinstance(problems, Regressions) and optimizer in {"SGD", "momentum"}:
        found = [steps_to_stay(way, make(1.0), problems.scaled(rates), budget)]
    else:  # Muon takes matrices, one by one
        parts = problems.each() if optimizer == "Muon" else [problems]
        found = [steps_to_stay(way, make(rate), part, budget) for rate in rates for part in parts]
    return torch.stack(found).view(len(rates), -1)


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


def default_layers(effort: Effort, seed: int) -> Table:
    """Every optimizer, all ways at the same learning rates."""
    table = Table("Steps of default-initialised layers, all at the same learning rates", RATES)
    for name in optimizers():
        generator = torch.Generator().manual_seed(seed)
        # Muon trains one matrix after the other.
        sizes, count = (effort.sizes[:1], 6) if name == "Muon" else (effort.sizes, effort.count)
        kinds = LAYERS.values()
        draws = ([_ways.regressions(n, count, generator, *k) for k in kinds] for n in sizes)
        layers = [*map(_ways.joined, draws)]
        steps = {
            way: torch.cat([
                steps_at(way, name, SHARED[name], problems, effort.budget).flatten()
                for problems in layers
            ])
            for way in effort.ways
        }
        table.put(f"{name} {_listed(SHARED[name])}", _scores(steps, effort))
    return table


def one_entry(effort: Effort) -> Table:
    """Summed losses, which have any curvature, and steps up to the largest stable one."""
    table = Table("Steps of weights of one entry, by the place of the optimum", UNIT)
    sgd, adam = torch.optim.SGD, torch.optim.Adam
    for place, targets in ENTRIES.items():
        problems = _ways.single_entries(targets)
        for label, make, those in (
            ("SGD, lr=0.1", partial(sgd, lr=0.1), problems),
            ("SGD, 0.95 of the largest lr", partial(sgd, lr=1.0), problems.scaled([0.95])),
            ("Adam, lr=0.1", partial(adam, lr=0.1), problems),
        ):
            steps = {way: steps_to_stay(way, make, those, effort.budget) for way in effort.ways}
            table.put(f"{place}, {label}", _scores(steps, effort))
    return table


def other_problems(effort: Effort, seed: int, optimizer: str) -> list[Table]:
    """Other starts and targets: all ways at the same learning rates; with Adam, also at their best.

    SGD's largest stable rate is among those of the first table.
    """
    is_adam, shared = optimizer == "Adam", SHARED[optimizer]
    tried = effort.tried if is_adam else shared
    generator = torch.Generator().manual_seed(seed)
    problems = {
        name: _ways.regressions(8, effort.count, generator, *kind) for name, kind in KINDS.items()
    }
    orders = _ways.fitted_rates(effort.count, generator)
    steps: dict[str, dict[str, Tensor]] = {name: {} for name in problems}
    for way in effort.ways:
        found = steps_at(way, optimizer, tried, _ways.joined([*problems.values()]), effort.budget)
        for name, part in zip(problems, found.chunk(len(problems), 1), strict=True):
            steps[name][way] = part
        if is_adam:
            found = steps_at(way, optimizer, tried, orders, effort.budget)
            steps.setdefault("rates 0.001 to 10", {})[way] = found
    title = f"Steps from other starts to other targets, {optimizer}"
    same = Table(f"{title}, all at the rates {_listed(shared)}", UNIT if is_adam else RATES)
    best = Table(f"{title}, each at its best of {_listed(tried)}", UNIT)
    at_best = partial(min, key=partial(mean, budget=effort.budget))
    for name, column in steps.items():
        kept = {way: found[[tried.index(rate) for rate in shared]] for way, found in column.items()}
        same.put(name, _scores(kept, effort))
        best.put(name, _scores({way: at_best(found) for way, found in column.items()}, effort))
    return [same, best] if is_adam else [same]


def stable_rates(effort: Effort, seed: int) -> Table:
    """Of small and large entries."""
    table = Table(
        "The largest learning rate of SGD at which training stays at the optimum",
        "In units of the largest one of an unconstrained weight, by the size of the entries.",
    )
    sizes = (0.1, 1.0, 10.0)
    for way in effort.ways:
        for size, rate in zip(sizes, largest_rates(way, sizes, effort.settle, seed), strict=True):
            table.put(str(size), {way: rate})
    return table


def largest_rates(way: str, sizes: Sequence[float], settle: int, seed: int) -> list[float]:
    """For layers whose diagonal shall be of a size, and starts at half of that; 0 if there is none.

    All entries have to be within 5 % of the optimum in the last tenth of all steps.
    """
    generator = torch.Generator().manual_seed(seed)
    rates, few = [1.1**k for k in range(-75, 1)], 2
    parts = []
    for size in sizes:
        part = _ways.regressions(8, few, generator, (size / 2, size / 2), (size, size))
        parts.append(part.scaled([0.99 * rate for rate in rates]))
    steps = steps_to_stay(way, partial(torch.optim.SGD, lr=1.0), _ways.joined(parts), settle)
    stays = (steps <= 0.9 * settle).view(len(sizes), len(rates), few).all(-1)
    return [_end_of_first_run(rates, row.tolist()) for row in stays]


def _end_of_first_run(rates: Sequence[float], good: Sequence[bool]) -> float:
    # Small rates may be too slow; what is good beyond a gap is luck.
    end = 0.0
    for rate, is_good in zip(rates, good, strict=True):
        if is_good:
            end = rate
        elif end:
            break
    return end


def way_back(effort: Effort) -> Table:
    """A constant force towards the boundary, which then turns."""
    table = Table(
        f"Steps back after {effort.force:,} steps of a constant force towards zero",
        f"Learning rate 0.01; inf is more than {4 * effort.force:,}.",
    )
    for name in ("SGD", "Adam", "RMSprop"):
        make = optimizers()[name](0.01)
        for way in effort.ways:
            _, back = _ways.there_and_back(way, make, effort.force, 4 * effort.force)
            table.put(name, {way: back if math.isinf(back) else int(back)})
    return table


def recurrent_network(effort: Effort, seed: int) -> Table:
    """A continuous-time RNN learns another's trajectories."""
    rates = (0.03, 0.1, 0.3)
    table = Table(
        "A continuous-time RNN of 16 units, dx = A x + W tanh(x) + B u, learns another's output",
        f"Error after {effort.recurrent} steps of Adam, in units of clamping by hand: geometric "
        f"mean of four networks, by the size of the entries of A; own best of {_listed(rates)}.",
    )
    for decay in (1.0, 10.0):
        found = {}
        for way in effort.ways:
            errors = [_ways.recurrent_errors(way, decay, r, effort.recurrent, seed) for r in rates]
            found[way] = torch.stack(errors).log().mean(1).exp()
        for label, pick in ((f"{decay:g}, all at {rates[0]}", 0), (f"{decay:g}, own best", ...)):
            cells = {way: errors[pick].min().item() for way, errors in found.items()}
            table.put(label, {way: error / cells[CLAMP] for way, error in cells.items()})
    return table


def verdict(tables: Sequence[Table]) -> str:
    """The columns that candidates win."""
    lines = []
    for name in CANDIDATES:
        lines.append(f"- {name}:")
        for table in tables:
            for column in table.rows[name]:
                best, *others = (float(table.rows[way][column]) for way in (name, *RIVALS))
                if "rate of SGD" in table.title:  # the larger the better
                    factor = best / max(others) if best else 0.0
                else:
                    factor = min(others) / best
                if factor >= 1.5:
                    lines.append(f"  - {table.title}: {column}, by {factor:.1f}")
    return "\n".join(["### Columns that clamp, exp and softplus lose by 1.5 or more", "", *lines])


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(map(str, rates))


def _scores(steps: dict[str, Tensor], effort: Effort) -> dict[str, Score]:
    return {way: Score.of(found, steps[CLAMP], effort.budget) for way, found in steps.items()}


def study(effort: Effort, seed: int) -> Iterator[Table]:
    yield default_layers(effort, seed)
    yield one_entry(effort)
    yield from other_problems(effort, seed, "SGD")
    yield from other_problems(effort, seed, "Adam")
    yield stable_rates(effort, seed)
    yield way_back(effort)
    yield recurrent_network(effort, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="training", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="less of everything, in seconds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the matrices are small
    tables: list[Table] = []
    for table in study(QUICK if options.quick else Effort(), options.seed):
        tell(table.title)
        tables.append(table)
    print(f"Seed {options.seed}, torch {torch.__version__}, float32.\n")
    print("\n".join(table.markdown() for table in tables))
    print(verdict(tables))


if __name__ == "__main__":
    main()
