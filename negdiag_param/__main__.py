"""Forecasts from few rows of real data, with and without a negative diagonal."""

import argparse
import sys
from collections.abc import Sequence

import torch

from negdiag_param._demo.data import ALPHA_PINENE, HUDSON_BAY, read_csv
from negdiag_param._demo.fit import Comparison
from negdiag_param._demo.plot import check, plot
from negdiag_param._demo.report import notes, table

ABOUT = """\
A weight maps the state to its rates of change (for counts: those of log n). It is fitted to each
window of rows, and the next 5 rows are forecast. Its diagonal, what a state does to itself, should
be negative. A rate is explained by the row before (forward) or by the mean of the rows before and
after (midpoint). Errors: root mean square, in per cent for alpha-pinene, of log n for counts.
  constrained          register_negative_diagonal(model, map={map!r}, margin={margin:g}, ...)
  clamped by hand      a plain weight, clamped after each step: by construction as map='clamp'
  free, ... dropped    least squares, with all entries or without some of the diagonal
"""
MAPS = ("clamp", "exp", "softplus", "square", "sign_flip")
KINDS = ("forward", "midpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m negdiag_param", description=__doc__)
    add = parser.add_argument
    add("file", nargs="?", help="a CSV file of your own: a time, then a count of each species")
    add("--map", choices=MAPS, default="clamp", help="how the diagonal is kept (default: clamp)")
    add("--margin", type=float, default=0.0, help="diagonals are at most minus this")
    add("--plot", metavar="FILE.png", help="draw the diagonals; needs matplotlib")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        if not 0 <= options.margin < 1e6:
            raise ValueError(f"--margin: expected 0 to 1e6, found {options.margin}")
        if options.plot:
            check(options.plot)
        data = [read_csv(options.file)] if options.file else [ALPHA_PINENE, HUDSON_BAY]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(ABOUT.format(map=options.map, margin=options.margin), flush=True)
    results = [Comparison(d, k, options.margin, options.map) for d in data for k in KINDS]
    print("\n".join([*table(results), "", *notes(results, options.margin)]))
    if options.plot:
        plot([result for result in results if result.kind == KINDS[1]], options.plot)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
