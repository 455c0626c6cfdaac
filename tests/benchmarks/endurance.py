"""Every map under every optimizer, pushed at the boundary for long: ``--help`` says more.

A constant force pushes the diagonals of small weights upwards, and then downwards until they are
where they started. No entry may ever be zero or positive; by hand, it is looked at after clamping.
"""

import argparse
import math
from collections.abc import Sequence

import torch

from tests.benchmarks._measure import Table, tell
from tests.benchmarks._ways import CLAMP, START, optimizers, there_and_back
from tests.support.tables import BUILT_IN as MAPS

RATES = {"SGD": 0.1, "momentum": 0.1, "RMSprop": 0.003}  # momentum's is a tenth; others' are 0.01


def endured(way: str, optimizer: str, steps: int) -> str:
    """How close to zero the entries came, and how many steps they took to come back.

    Raises:
        RuntimeError: if an entry was not negative.
    """
    make = optimizers()[optimizer](RATES.get(optimizer, 0.01))
    closest, back = there_and_back(way, make, steps, steps)
    if not closest < 0:
        raise RuntimeError(f"expected negative entries at every step of {way}, got {closest}")
    return f"{closest:.1e}, {f'more than {steps:,}' if math.isinf(back) else f'{back:,}'}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="endurance", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    steps = parser.parse_args(arguments).steps
    torch.set_num_threads(1)
    table = Table(
        f"Entries that start at {START}, pushed upwards for {steps:,} steps, then back",
        "The closest approach to zero, and the steps back.",
    )
    for name in optimizers():
        for way in (CLAMP, *MAPS):
            tell(f"{name}, {way}")
            table.put(name, {way: endured(way, name, steps)})
    print(table.markdown())


if __name__ == "__main__":
    main()
