"""What the demo prints: its progress, the fits side by side and what they say."""

import math
import sys
from collections.abc import Iterable, Iterator

from negdiag_param._demo.data import HUDSON_BAY, Observations
from negdiag_param._demo.fit import Fit

# Posterior means of a fit to whole trajectories, without self-interactions (Carpenter 2018).
PUBLISHED = ["+0.5469", "-0.8001", "", "-0.02775", "+0.02409", "", "", ""]


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
