"""What the maps do to training: ``python -m tests.benchmarks.training --help``.

The rule for the default map, which was there before the figures: the smallest geometric mean in the
first table's last column among the maps that arrive wherever clamping does.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from tests.benchmarks import _study

QUICK = _study.Effort(sizes=(8,), seeds=1, budget=60, force=50, recurrent=5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="training", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="less of everything, in seconds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the matrices are small
    effort = QUICK if options.quick else _study.Effort()
    tables = [
        _study.default_layers(effort, options.seed),
        *(_study.other_problems(effort, options.seed, name) for name in ("SGD", "Adam")),
        _study.stable_rates(effort, options.seed),
        _study.boundary(effort),
        _study.recurrent_network(effort, options.seed),
    ]
    print(f"Seed {options.seed}, torch {torch.__version__}, float32.\n")
    print("\n".join(table.markdown() for table in tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
