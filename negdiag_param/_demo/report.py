"""The tables that the demo prints: the fits to all rows, and the forecasts from the windows."""

from argparse import Namespace
from collections.abc import Sequence
from statistics import fmean, median

import torch
from torch import Tensor

from negdiag_param._demo.data import HUDSON_BAY, Observations
from negdiag_param._demo.fit import Fit
from negdiag_param._demo.score import Score

# Posterior means of a fit to whole trajectories, without self-interactions (Carpenter 2018).
PUBLISHED = ["+0.5469", "-0.8001", "", "-0.02775", "+0.02409", "", "", "", ""]
SIGNS = {1: "+", 0: "=", -1: "-"}
MARKS = 20  # as many as a line has room for
KEY = "with the constraint + better, = the same within 1 %, - worse"


def heading(data: Observations, options: Namespace, windows: int, horizon: int) -> list[str]:
    """What is done, and how."""
    title = f"{data.source}: {' and '.join(data.species)}, {years(data, range(len(data.years)))}"
    chosen = "" if options.map is None else f", map={options.map!r}"
    lines = [
        title,
        "=" * len(title),
        "Model     growth of log n = bias + weight @ n",
        f'Retrofit  register_negative_diagonal(model, "weight", dims=(-2, -1){chosen})',
        f"Training  least squares, all rows and {many(windows, 'window')} of them at once: Adam, "
        f"{many(options.steps, 'step')}, seed {options.seed}",
        f"Forecast  from the last row of each window, up to {many(horizon, 'row')} ahead",
    ]
    if options.margin:
        lines.append(
            f"Margin    at mean counts, crowding costs each species at least {options.margin:g} of "
            f"growth per year"
        )
    return lines


def parameters(data: Observations, free: Fit, constrained: Fit) -> list[str]:
    """The fits to all rows side by side, and the published figures beside the data they are of."""
    prey, predator = data.species
    labels = [f"fit to all {len(data.years)} rows", f"growth of {prey}", f"growth of {predator}"]
    labels += [f"{prey} on {prey}", f"{predator} on {prey}"]
    labels += [f"{prey} on {predator}", f"{predator} on {predator}"]
    labels += ["largest diagonal, any step", "SSR", "eigenvalue at equilibrium"]
    columns = [labels, ["free", *values(free)], ["constrained", *values(constrained)]]
    if data is HUDSON_BAY:
        columns.append(["published", *PUBLISHED])
    return table(list(zip(*columns, strict=True)))


def values(fit: Fit) -> list[str]:
    """The parameters of the fit to all rows, and what they are judged by."""
    growth, interactions = fit.growth[0], fit.interactions[0]
    figures = [*growth, *interactions.flatten(), fit.diagonals.max()]
    eigenvalue = slowest(growth, interactions)
    return [
        *(signed(float(figure)) for figure in figures),
        f"{float(fit.ssr[0]):.5g}",
        "none" if eigenvalue is None else signed(eigenvalue),
    ]


def slowest(growth: Tensor, interactions: Tensor) -> float | None:
    """The largest real part of the eigenvalues where both species stand still, if they can."""
    equilibrium, info = torch.linalg.solve_ex(interactions, -growth)
    jacobian = equilibrium[:, None] * interactions
    if info or not (equilibrium > 0).all() or not jacobian.isfinite().all():
        return None
    return float(torch.linalg.eigvals(jacobian).real.max())


def forecasts(data: Observations, spans: Sequence[range], score: Score) -> list[str]:
    """The errors, a line for each length of window, or each window if there is a single length."""
    lengths = sorted({len(span) for span in spans})
    if len(lengths) == 1:
        return [*each_window(data, spans, score), "", KEY]
    parts = [score.of([len(span) == length for span in spans]) for length in lengths]
    labels = [*(f"{length}-row windows" for length in lengths), "all windows"]
    rows = [["RMSE of log n", *("free", "constrained") * 2, "better", "same", "worse"]]
    rows += [[label, *summary(part)] for label, part in zip(labels, [*parts, score], strict=True)]
    if max(len(part.signs) for part in parts) <= MARKS:
        marks = ["".join(SIGNS[sign] for sign in part.signs) for part in parts]
        width = max(map(len, marks))
        rows = [
            [*row, mark.ljust(width)] for row, mark in zip(rows, ["each", *marks, ""], strict=True)
        ]
    body = table(rows)
    mean, middle = (find("free") + len("free") for find in (body[0].index, body[0].rindex))
    return [f"{'mean':>{mean}}{'median':>{middle - mean}}", *body, "", KEY]


def each_window(data: Observations, spans: Sequence[range], score: Score) -> list[str]:
    """The errors, a line for each window."""
    rows = [["RMSE of log n", "free", "constrained", "better"]]
    figures = zip(score.free, score.constrained, score.signs, strict=True)
    for span, (free, constrained, sign) in zip(spans, figures, strict=True):
        rows.append([years(data, span), error(free), error(constrained), SIGNS[sign]])
    return table(rows)


def summary(score: Score) -> list[str]:
    """The mean and the median errors, and how many windows are better, the same and worse."""
    errors = [score.free.tolist(), score.constrained.tolist()]
    figures = [of(part) for of in (fmean, median) for part in errors]
    return [*map(error, figures), *(str(score.signs.count(sign)) for sign in (1, 0, -1))]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned columns, the first to the left, with a rule below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def years(data: Observations, span: range) -> str:
    """The first and the last year of a span."""
    first, last = (float(data.years[row]) for row in (span[0], span[-1]))
    return f"{first:.10g} to {last:.10g}"


def many(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}{'s' * (number != 1)}"


def signed(value: float) -> str:
    """Five decimals, or three digits for the very small and the very large."""
    return f"{value:+.5f}" if 1e-4 <= abs(value) < 1e4 else f"{value:+.2e}"


def error(value: Tensor | float) -> str:
    """Three decimals, or one digit of the very small and the very large."""
    return f"{float(value):.3f}" if 1e-2 <= float(value) < 1e3 else f"{float(value):.0e}"
