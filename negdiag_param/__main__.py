"""Forecasts of a predator-prey community, with and without the constraint."""

import sys
import textwrap
from collections.abc import Sequence

from negdiag_param._demo.arguments import parser
from negdiag_param._demo.data import HUDSON_BAY
from negdiag_param._demo.fit import fit
from negdiag_param._demo.forecast import forecast
from negdiag_param._demo.notes import notes
from negdiag_param._demo.plot import check_plot, plot
from negdiag_param._demo.progress import Progress
from negdiag_param._demo.read import read_csv
from negdiag_param._demo.report import forecasts, heading, parameters
from negdiag_param._demo.score import Score
from negdiag_param._demo.windows import check, lengths, windows

WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; None means those of the process.

    Returns:
        The exit code: 0, or 2 for a file or an argument that cannot be used.
    """
    options = parser().parse_args(argv)
    try:
        data = HUDSON_BAY if options.csv is None else read_csv(options.csv)
        rows = len(data.years)
        check(rows, options.window, options.horizon)
        if options.plot is not None:
            check_plot(options.plot)
    except ValueError as error:
        print(f"negdiag_param: error: {error}", file=sys.stderr)
        return 2

    tried = [options.window] if options.window else lengths(rows)
    spans = [span for length in tried for span in windows(rows, length)]
    horizon = options.horizon or min(5, rows - tried[0])
    fits = []
    for name, margin in (("free", None), ("constrained", options.margin)):
        fits.append(
            fit(
                data,
                [range(rows), *spans],
                margin,
                map=options.map,
                steps=options.steps,
                seed=options.seed,
                on_step=Progress(name, options.steps).show,
            )
        )
    free, constrained = fits
    ahead = [forecast(data, f, spans, horizon) for f in fits]
    score = Score(*(f.rmse for f in ahead))

    print("\n".join([*heading(data, options, len(spans), horizon), ""]))
    print("\n".join([*parameters(data, free, constrained), ""]))
    print("\n".join(forecasts(data, spans, score)))
    for note in notes(data, free, constrained, score):
        print()
        print(textwrap.fill(note, WIDTH))
    if options.plot is not None:
        plot(data, fits, spans, ahead, options.plot)
        print(f"\nPlotted in {options.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
