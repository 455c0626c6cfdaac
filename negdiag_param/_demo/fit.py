"""The community model, trained on many spans of the data at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from negdiag_param import register_negative_diagonal
from negdiag_param._demo.data import Observations
from negdiag_param._demo.exact import least_squares


class Community(nn.Module):
    """A batch of generalised Lotka-Volterra equations, ``d log n / dt = bias + weight @ n``.

    The bias holds the growth rates, the weight the effect of each species (column) on each other
    (row), and its diagonal the effect of each species on itself. All start from the same values.
    """

    def __init__(self, communities: int, species: int = 2) -> None:
        super().__init__()
        start = nn.Linear(species, species)
        self.bias = nn.Parameter(start.bias.detach().repeat(communities, 1))
        self.weight = nn.Parameter(start.weight.detach().repeat(communities, 1, 1))

    def forward(self, n: Tensor) -> Tensor:
        """The growth of log n at the counts ``n``, of shape (community, time, species)."""
        return self.bias[:, None] + n @ self.weight.mT


@dataclass(frozen=True)
class Fit:
    """Fitted communities, one for each span of rows, in the units of the data.

    ``converged`` says which came close to exact least squares, ``diagonals`` holds those of the
    first span at every step, and ``kept`` says whether all of all spans were below zero, and below
    the margin, at every step.
    """

    growth: Tensor
    interactions: Tensor
    ssr: Tensor
    converged: Tensor
    diagonals: Tensor
    kept: bool
    margin: float | None


@contextmanager
def one_thread() -> Iterator[None]:
    """A single thread: for so little arithmetic several would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def fit(
    data: Observations,
    spans: Sequence[range],
    margin: float | None,
    *,
    map: str | None = None,
    steps: int,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> Fit:
    """Fits a community per span to the log growth between its rows, at the counts midway.

    Args:
        data: the rows.
        spans: which rows each community is fitted to.
        margin: keeps the self-interactions below zero, by at least so much growth per year at a
            span's mean counts; None leaves them free.
        map: how they are kept; None means the library's default.
        steps: how many steps Adam takes.
        seed: determines the initial values.
        on_step: called after each step with its number.

    Returns:
        The fits after the last step.
    """
    midpoints = [data.midpoints[span.start : span.stop - 1] for span in spans]
    growth = [data.growth[span.start : span.stop - 1] for span in spans]
    # Units in which everything is of order one; positive factors keep every sign.
    count = torch.stack([m.mean(0) for m in midpoints])
    rate = data.growth.abs().mean()
    rate = rate if rate > 0 else torch.ones_like(rate)
    inputs = pad_sequence(
        [m / c - 1 for m, c in zip(midpoints, count, strict=True)], batch_first=True
    )
    targets = pad_sequence(growth, batch_first=True) / rate
    known = pad_sequence([torch.ones_like(g[:, :1]) for g in growth], batch_first=True)
    bound = None if margin is None else margin / float(rate)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Community(len(spans), len(data.species)).double()
    if bound is not None:
        options: dict[str, Any] = {} if map is None else {"map": map}
        register_negative_diagonal(model, "weight", dims=(-2, -1), margin=bound, **options)

    def losses() -> Tensor:
        residuals: Tensor = (model(inputs) - targets) * known
        return residuals.square().sum((1, 2))

    def diagonals() -> Tensor:
        return model.weight.detach().diagonal(dim1=1, dim2=2)

    # Without noise in the gradients a short memory does, and the way to a boundary needs it.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    first, largest = [diagonals()[0].clone()], diagonals().max()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        torch.autograd.backward(losses().sum())
        optimizer.step()
        schedule.step()
        now = diagonals()
        first.append(now[0].clone())
        largest = torch.maximum(largest, now.max())
        on_step(step)

    weight, ssr = model.weight.detach(), losses().detach()
    optimum = least_squares(inputs, targets, known, bound)
    return Fit(
        growth=(model.bias.detach() - weight.sum(-1)) * rate,
        interactions=weight * rate / count[:, None],
        ssr=ssr * rate**2,
        converged=ssr <= 1.001 * optimum + 1e-6 * known.sum((1, 2)),
        diagonals=torch.stack(first) * rate / count[0],
        kept=bool(largest < 0 and largest <= -(bound or 0.0)),
        margin=margin,
    )
