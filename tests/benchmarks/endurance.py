"""Every map under every optimizer, pushed at the boundary for long: ``--help`` says more.

A constant force pushes the diagonals of small weights upwards, and then downwards until they are
where they started. No entry may ever be zero or positive.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from tests.benchmarks._report import Table, tell
from tests.benchmarks._rivals import MAPS
from tests.benchmarks._steps import Make, optimizers

START = -0.2


def endured(make: Make, steps: int) -> dict[str, str]:
    """How close to zero each map's entries came, and how many steps they took to come back.

    Raises:
        RuntimeError: if an entry was not negative.
    """
    maps = [made() for made in MAPS.values()]
    start = START * torch.eye(2)
    originals = [made.right_inverse(start).requires_grad_() for made in maps]
    optimizer = make(originals)
    closest, back = torch.full((len(maps),), -torch.inf), torch.zeros(len(maps))
    for step in range(1, 2 * steps + 1):
        optimizer.zero_grad()
        weights = [made(x) for made, x in zip(maps, originals, strict=True)]
        entries = torch.stack(weights).diagonal(dim1=-2, dim2=-1)
        (entries if step > steps else -entries).sum().backward()
        optimizer.step()
        largest = entries.detach().amax(1)
        if largest.max() >= 0:
            raise RuntimeError(f"expected negative entries at step {step}, got {largest.tolist()}")
        closest = torch.maximum(closest, largest)
        if step > steps:
            back[(back == 0) & (largest <= START)] = step - steps
            if back.all():
                break
    return {
        name: f"{near:.1e}, back in {f'{int(count):,}' if count else f'more than {steps:,}'}"
        for name, near, count in zip(MAPS, closest.tolist(), back.tolist(), strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="endurance", description=__doc__)
    parser.add_argument("optimizers", nargs="*", default=list(optimizers()))
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = Table(
        f"Entries that start at {START}, pushed upwards for {options.steps:,} steps, then back",
        "The closest approach to zero, and the steps back.",
    )
    for name in options.optimizers:
        tell(name)
        table.put(name, endured(optimizers()[name][0], options.steps))
    print(table.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
