"""Fits a predator-prey community with and without the constraint: ``python -m negdiag_param``."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence

from negdiag_param._demo.data import HUDSON_BAY, read_csv
from negdiag_param._demo.fit import MAPS, fit
from negdiag_param._demo.plot import check_plot, plot
from negdiag_param._demo.report import Progress, heading, notes, table

WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; None means those of the process.

    Returns:
        The exit code: 0, or 2 for a file that cannot be used.
    """
    options = parser().parse_args(argv)
    try:
        data = HUDSON_BAY if options.csv is None else read_csv(options.csv)
        if options.plot is not None:
            check_plot(options.plot)
    except ValueError as error:
        print(f"negdiag_param: error: {error}", file=sys.stderr)
        return 2
    fits = []
    for name in (None, *([options.map] if options.map else MAPS)):
        progress = Progress(name or "unconstrained", options.steps)
        fits.append(fit(data, name, steps=options.steps, seed=options.seed, on_step=progress.show))
    print("\n".join([*heading(data, options.steps, options.seed), "", *table(data, fits)]))
    for note in notes(data, fits):
        print()
        print(textwrap.fill(note, WIDTH))
    if options.plot is not None:
        plot(data, fits, options.plot)
        print(f"\nPlotted in {options.plot}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m negdiag_param",
        description="Fit a predator-prey community to the Hudson Bay pelts, without and with a "
        "negative diagonal on its interaction matrix.",
    )
    result.add_argument("--map", choices=MAPS, help="fit this map only (default: all)")
    result.add_argument("--steps", type=whole(1, 10**6), default=1000, help="default: %(default)s")
    result.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="default: %(default)s")
    result.add_argument(
        "--csv", metavar="FILE", help="fit this file, with a header: year,prey,predator"
    )
    result.add_argument("--plot", metavar="FILE.png", help="plot the fits; needs matplotlib")
    return result


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """A converter for whole numbers in a range."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {minimum} to {maximum}, got {text!r}"
            )
        return value

    return convert


if __name__ == "__main__":
    sys.exit(main())
