"""The fits as a picture, where matplotlib is installed."""

import torch

from negdiag_param._demo.data import Observations
from negdiag_param._demo.fit import Fit


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
