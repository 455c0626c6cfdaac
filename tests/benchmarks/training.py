"""What the maps do to training: ``python -m tests.benchmarks.training --help``.

Clamping by hand is the unit. The rule for maps, which was there before the figures: besides clamp,
exp, softplus and sign_flip, one stays if it wins a column that clamp, exp and softplus all lose by
a factor of 1.5. The last lines are its verdict.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from tests.benchmarks import _study

QUICK = _study.Effort(sizes=(8,), count=1, budget=40, settle=40, force=40, recurrent=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="training", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="less of everything, in seconds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the matrices are small
    effort, seed = QUICK if options.quick else _study.Effort(), options.seed
    tables = [
        _study.default_layers(effort, seed),
        _study.one_entry(effort),
        *_study.other_problems(effort, seed, "SGD"),
        *_study.other_problems(effort, seed, "Adam"),
        _study.stable_rates(effort, seed),
        _study.way_back(effort),
        _study.recurrent_network(effort, seed),
    ]
    print(f"Seed {seed}, torch {torch.__version__}, float32.\n")
    print("\n".join(table.markdown() for table in tables))
    print(_study.verdict(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
