"""The forecasts as a picture, where matplotlib is installed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from negdiag_param._demo.data import Observations
from negdiag_param._demo.fit import Fit
from negdiag_param._demo.forecast import Forecast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Read on white and on black alike; a free line is wide and pale, for the other one to lie upon.
INK = "#808080"
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLES: dict[str, Any] = {
    "free": {"color": "#e8893a", "linewidth": 4, "alpha": 0.75, "solid_capstyle": "butt"},
    "constrained": {"color": "#2f8fd8", "linewidth": 1.5},
}


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


def plot(
    data: Observations,
    fits: Sequence[Fit],
    spans: Sequence[range],
    forecasts: Sequence[Forecast],
    path: str,
) -> None:
    """Draws the data, the forecasts from the shortest windows and the diagonal in training."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    ink: dict[Any, str] = dict.fromkeys(INKED, INK)
    with rc_context({**ink, "axes.facecolor": "none"}):
        figure = Figure(figsize=(13, 4), layout="constrained", facecolor="none")
        counts, ahead, diagonal = figure.subplots(1, 3)
        draw_counts(counts, data)
        draw_forecasts(ahead, data, spans, forecasts)
        draw_diagonal(diagonal, data, fits)
        for axes in (counts, ahead, diagonal):
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.spines[["top", "right"]].set_visible(False)
        for axes in (counts, ahead):
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        for axes in (counts, ahead, diagonal):
            axes.legend(frameon=False, fontsize="small")
        figure.savefig(path, dpi=150)


def draw_counts(axes: "Axes", data: Observations) -> None:
    """The data."""
    for column, color, marker in zip(data.counts.T, ("#9a6fd0", "#3aa676"), "os", strict=True):
        name = data.species[len(axes.lines)]
        axes.plot(data.years, column, color=color, marker=marker, markersize=4, label=name)
    axes.set(title=data.source, xlabel="year", yscale="log")


def draw_forecasts(
    axes: "Axes", data: Observations, spans: Sequence[range], forecasts: Sequence[Forecast]
) -> None:
    """The prey after each of the shortest windows, as observed and as forecast."""
    shortest = [i for i, span in enumerate(spans) if len(span) == len(spans[0])]
    prey = data.counts[:, 0]
    for (name, style), f in zip(STYLES.items(), forecasts, strict=True):
        for i in shortest:
            years = data.years[spans[i].stop - 1 :][: f.counts.shape[1]]
            label = name if i == shortest[0] else None
            axes.plot(years, f.counts[i, : len(years), 0], label=label, **style)
    axes.plot(data.years, prey, "o", color=INK, markersize=4, label="observed")
    low, high = float(prey.min()), float(prey.max())
    axes.set(title=f"{data.species[0]}: forecasts from windows of {len(spans[0])} rows")
    axes.set(xlabel="year", yscale="log", ylim=(low / 5, high * 5))


def draw_diagonal(axes: "Axes", data: Observations, fits: Sequence[Fit]) -> None:
    """How far the prey's self-interaction was from zero, and on which side it ended."""
    for (name, style), fit in zip(STYLES.items(), fits, strict=True):
        entry = fit.diagonals[:, 0]
        side = "negative" if entry[-1] < 0 else "positive"
        axes.plot(entry.abs(), label=f"{name}, {side} at the end", **style)
    prey = data.species[0]
    axes.set(title=f"{prey} on {prey} in training: distance from zero", xlabel="step", yscale="log")
