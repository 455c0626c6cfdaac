"""The signs of the diagonals as a picture."""

import sys
from collections.abc import Sequence

import torch

from negdiag_param._demo.fit import Comparison

# Of Okabe and Ito: told apart in grey, and with any sight.
STYLES = {"free": ("#E69F00", 70), "constrained": ("#0072B2", 14)}


def check(path: str) -> None:
    """Makes sure, before any fitting, that a picture can be drawn and written.

    Raises:
        ValueError: if matplotlib is missing, with the command that installs it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        install = f"{sys.executable} -m pip install matplotlib"
        raise ValueError(f"--plot needs matplotlib; to install it: {install}") from None
    Figure().savefig(path)


def plot(results: Sequence[Comparison], path: str) -> None:
    """Draws the largest diagonal entry of each window against the time of its last row."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    figure = Figure(figsize=(4.5 * len(results), 3.6), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        ends = torch.stack([result.data.times[window.stop - 1] for window in result.windows])
        for name, (color, size) in STYLES.items():
            largest = result.weights[name].diagonal(dim1=1, dim2=2).amax(1)
            axes.scatter(ends, largest, s=size, color=color, label=name, zorder=2)
        axes.set_yscale("symlog", linthresh=0.1, subs=[1])
        axes.set_ylim(*axes.get_ylim())
        axes.axhspan(0, axes.get_ylim()[1], color="0.88", zorder=0)
        axes.text(0.98, 0.95, "wrong sign", transform=axes.transAxes, ha="right", va="top")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.set_title(f"{result.data.name}, {result.kind}")
        axes.set_xlabel(f"last {result.data.time} of the rows that are fitted")
        axes.set_ylabel(f"largest diagonal entry, per {result.data.time}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=150)
