"""Fits a predator-prey community with and without the constraint: ``python -m negdiag_param``."""

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import get_args

import torch

from negdiag_param._hudson_bay import HUDSON_BAY, Fit, Observations, fit, read_csv
from negdiag_param._registration import MapName

WIDTH = 100
NAMES: tuple[MapName, ...] = get_args(MapName)
# Posterior means of a fit to whole trajectories, without self-interactions (Carpenter 2018).
PUBLISHED = ["+0.5469", "-0.8001", "", "-0.02775", "+0.02409", "", "", ""]


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
    for name in (None, *([options.map] if options.map else NAMES)):
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
    result.add_argument("--map", choices=NAMES, help="fit this map only (default: all)")
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


class Progress:
    """Shows how far a fit is: a bar in a terminal, a line at its end elsewhere."""

    def __init__(self, name: str, steps: int) -> None:
        self.name = name
        self.steps = steps
        self.terminal = sys.stderr.isatty()

    def show(self, step: int, ssr: float) -> None:
        """Shows one step, if it is time to."""
        last = step == self.steps
        if self.terminal and (last or step % 20 == 1):
            bar = f"{'#' * (40 * step // self.steps):<40}"
            line = f"\r{self.name:<13} [{bar}] {step}/{self.steps}, SSR {ssr:.4f}\033[K"
            print(line, end="\n" if last else "", file=sys.stderr, flush=True)
        elif last:
            print(f"{self.name}: {step} steps, SSR {ssr:.4f}", file=sys.stderr, flush=True)


def heading(data: Observations, steps: int, seed: int) -> list[str]:
    """What was fitted, and how."""
    first, last = int(data.years[0]), int(data.years[-1])
    title = f"{data.source}: {' and '.join(data.species)}, {first} to {last}"
    return [
        title,
        "=" * len(title),
        "Model       dn/dt = n * linear(n)",
        "Retrofit    register_negative_diagonal(model.linear, 'weight', map=...)",
        "Regression  growth of log n from one row to the next ~ linear(n midway)",
        f"Training    Adam, {steps} steps, seed {seed}",
    ]


def table(data: Observations, fits: list[Fit]) -> list[str]:
    """The fits side by side, and the published figures beside the data they are of."""
    prey, predator = data.species
    labels = ["", f"growth of {prey}", f"growth of {predator}", f"{prey} on {prey}"]
    labels += [f"{predator} on {prey}", f"{prey} on {predator}", f"{predator} on {predator}"]
    labels += ["largest diagonal, any step", "SSR"]
    columns = [[f.name, *map(number, values(f)), f"{f.ssr:.5f}"] for f in fits]
    if data is HUDSON_BAY:
        columns.append(["published", *PUBLISHED])
    lines = [
        (f"{label:<26}" + "".join(f"{entry:>14}" for entry in row)).rstrip()
        for label, *row in zip(labels, *columns, strict=True)
    ]
    rule = "-" * len(lines[0])
    return [lines[0], rule, *lines[1:3], "", *lines[3:7], "", *lines[7:], rule]


def values(fit: Fit) -> list[float]:
    """The parameters of a fit and its largest diagonal entry, from the top of the table down."""
    figures = [*fit.growth, *fit.interactions.flatten(), fit.diagonals.max()]
    return [float(figure) for figure in figures]


def number(value: float) -> str:
    """Five decimals, or three digits for the very small and the very large."""
    return f"{value:+.5f}" if 1e-4 <= abs(value) < 1e4 else f"{value:+.2e}"


def notes(data: Observations, fits: list[Fit]) -> Iterator[str]:
    """What the table says, and what it does not."""
    free, *constrained = fits
    selves = free.interactions.diagonal().tolist()
    wrong = [name for name, value in zip(data.species, selves, strict=True) if value >= 0]
    if wrong:
        yield (
            f"Without the constraint the self-interaction of the {join(wrong)} comes "
            f"out positive, which would mean that crowding helps.{escape(data, free)}"
        )
    else:
        yield "Without the constraint all self-interactions come out negative as well."
    if all((f.diagonals < 0).all() for f in constrained):
        yield (
            f"With it the diagonal was negative at the start and after each of the "
            f"{len(free.diagonals) - 1} steps, under {join(f.name for f in constrained)}."
        )
    best = min(constrained, key=lambda f: f.ssr)
    if wrong and free.ssr < best.ssr:
        yield (
            f"The constraint has a price: the unconstrained fit has the lower SSR, {free.ssr:.4f} "
            f"against {best.ssr:.4f}. The best constrained fit lies on the boundary, so the "
            f"self-interaction of the {join(wrong)} tends to zero from below."
        )
    yield (
        "A negative diagonal is not stability in itself: [[-1, 2], [2, -1]] has the eigenvalue +1."
    )
    if data is HUDSON_BAY:
        yield (
            "The published figures (Carpenter 2018) are of another form of fit, to whole "
            "trajectories and without self-interactions: compare their size, not their digits."
        )


def join(words: Iterable[str]) -> str:
    """The words as prose: one, one and two, or one, two and three."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def escape(data: Observations, fit: Fit) -> str:
    """How soon the prey would reach infinity without the predator, if it would."""
    growth, crowding = float(fit.growth[0]), float(fit.interactions[0, 0] * data.counts[0, 0])
    if crowding <= 0 or growth + crowding <= 0 or growth == 0:
        return ""
    years = math.log1p(growth / crowding) / growth
    return f" Left alone, the {data.species[0]} would reach infinity within {years:.1f} years."


def check_plot(path: str) -> None:
    """Makes sure, before the training, that a plot can be made and written.

    Raises:
        ValueError: if it cannot, on one line.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from None
    if not path.lower().endswith(".png"):
        raise ValueError(f"{path!r}: expected a name that ends in .png")
    try:
        Figure().savefig(path)
    except OSError as error:
        raise ValueError(f"{path!r}: {error.strerror}") from None


def plot(data: Observations, fits: list[Fit], path: str) -> None:
    """Draws the data, the growth they fit and the prey's self-interaction during training."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 4), layout="constrained")
    counts, growth, diagonal = figure.subplots(1, 3)
    for name, column in zip(data.species, data.counts.T, strict=True):
        counts.plot(data.years, column, "o-", markersize=4, label=name)
    counts.set(title=data.source, xlabel="year")

    prey, midway = data.species[0], (data.years[1:] + data.years[:-1]) / 2
    growth.plot(midway, data.growth[:, 0], "ko", markersize=4, label="observed")
    for f in fits:
        predicted = f.growth + data.midpoints @ f.interactions.T
        growth.plot(midway, predicted[:, 0], label=f.name)
        diagonal.plot(torch.arange(len(f.diagonals)), f.diagonals[:, 0], label=f.name)
    growth.set(title=f"Growth of log {prey} per year", xlabel="year")
    diagonal.axhline(0, color="black", linewidth=0.8)
    diagonal.set(title=f"{prey} on {prey}, during training", xlabel="step")
    diagonal.set_yscale("symlog", linthresh=float(fits[0].interactions[0, 0].abs()))
    for axes in (counts, growth, diagonal):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
