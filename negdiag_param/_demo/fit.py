"""The community model and its fit by regression."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal
from negdiag_param._demo.data import Observations

MapName = Literal["exp", "softplus", "sign_flip"]
MAPS: tuple[MapName, ...] = get_args(MapName)


class Community(nn.Module):
    """The generalised Lotka-Volterra equations, ``dn/dt = n * linear(n)``.

    The bias holds the growth rates, the weight the effect of each species (column) on each other
    (row), and its diagonal the effect of each species on itself.
    """

    def __init__(self, species: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(species, species)

    def forward(self, n: Tensor) -> Tensor:
        """The rate of change of the counts ``n``."""
        change: Tensor = n * self.linear(n)
        return change


@dataclass(frozen=True)
class Fit:
    """A fitted community in the units of its data, with the diagonal at every step."""

    name: str
    growth: Tensor
    interactions: Tensor
    ssr: float
    diagonals: Tensor


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
    map: MapName | None,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, ssr: None,
) -> Fit:
    """Fits a community to the log growth between years, at the counts midway.

    Args:
        data: what to fit.
        map: keeps the self-interactions negative; None leaves them free.
        steps: how many steps Adam takes.
        seed: determines the initial values.
        on_step: called after each step with its number and the sum of squared residuals before it.

    Returns:
        The fit after the last step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Community().double()
    if map is not None:
        register_negative_diagonal(model.linear, "weight", map=map)

    # Units in which everything is of order one; positive factors keep every sign.
    count, rate = data.midpoints.mean(0), data.growth.square().mean().sqrt()
    rate = rate if rate > 0 else torch.ones_like(rate)
    inputs, targets = data.midpoints / count, data.growth / rate

    def loss() -> Tensor:
        residuals: Tensor = model.linear(inputs) - targets
        return residuals.square().sum()

    def diagonal() -> Tensor:
        return model.linear.weight.detach().diagonal().clone()

    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    diagonals = [diagonal()]
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        before = loss()
        torch.autograd.backward(before)
        optimizer.step()
        schedule.step()
        diagonals.append(diagonal())
        on_step(step, (before * rate**2).item())

    return Fit(
        name=map or "unconstrained",
        growth=model.linear.bias.detach() * rate,
        interactions=model.linear.weight.detach() * rate / count,
        ssr=(loss() * rate**2).item(),
        diagonals=torch.stack(diagonals) * rate / count,
    )
