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
from tests.benchmarks._measure import Table, tell

QUICK = _study.Effort(
    sizes=(8,), count=1, budget=40, tried=(0.01, 0.03, 0.1), settle=40, force=40, recurrent=2
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="training", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="less of everything, in seconds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the matrices are small
    effort, seed = QUICK if options.quick else _study.Effort(), options.seed
    sections = {
        "default layers": lambda: [_study.default_layers(effort, seed)],
        "one entry": lambda: [_study.one_entry(effort)],
        "other problems, SGD": lambda: _study.other_problems(effort, seed, "SGD"),
        "other problems, Adam": lambda: _study.other_problems(effort, seed, "Adam"),
        "stable rates": lambda: [_study.stable_rates(effort, seed)],
        "way back": lambda: [_study.way_back(effort)],
        "recurrent network": lambda: [_study.recurrent_network(effort, seed)],
    }
    tables: list[Table] = []
    for name, section in sections.items():
        tell(name)
        tables += section()
    print(f"Seed {seed}, torch {torch.__version__}, float32.\n")
    print("\n".join(table.markdown() for table in tables))
    print(_study.verdict(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
