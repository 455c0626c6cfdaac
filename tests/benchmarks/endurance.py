"""Every map under every optimizer, pushed at the boundary for long: ``--help`` says more.

A constant force pushes the diagonal of one weight upwards, and then downwards until it is where it
started. No entry may ever be zero or positive.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.benchmarks._report import Table, tell
from tests.benchmarks._rivals import MAPS
from tests.benchmarks._steps import Make, optimizers
from tests.benchmarks._ways import WAYS, diagonal, weights

START = -0.2


def endured(way: str, make: Make, steps: int) -> tuple[float, int | None]:
    """The entry closest to zero on the way out, and the steps back if there are not too many.

    Raises:
        RuntimeError: if an entry was not negative.
    """

    def force(weight: Tensor, step: int) -> Tensor:
        return torch.eye(2).expand_as(weight) * (-1.0 if step < steps else 1.0)

    closest = -torch.inf
    seen = weights(WAYS[way], make, START * torch.eye(2).expand(1, 2, 2), force, 2 * steps)
    for step, weight in enumerate(seen):
        entries = diagonal(weight)
        if not (entries < 0).all():
            raise RuntimeError(f"{way}: expected negative entries at step {step}, got {entries}")
        closest = max(closest, entries.max().item())
        if step > steps and entries.max() <= START:
            return closest, step - steps
    return closest, None


def table(names: Sequence[str], steps: int) -> Table:
    found = Table(
        f"Entries that start at {START}, pushed upwards for {steps:,} steps, then downwards",
        "The closest approach to zero, and the steps back.",
    )
    for name in names:
        for way in MAPS:
            closest, back = endured(way, optimizers()[name][0], steps)
            shown = f"{back:,}" if back else f"more than {steps:,}"
            tell(f"{name}, {way}: {closest:.1e}, back in {shown}")
            found.put(name, {way: f"{closest:.1e}, back in {shown}"})
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="endurance", description=__doc__)
    parser.add_argument("optimizers", nargs="*", default=list(optimizers()))
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(table(options.optimizers, options.steps).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
