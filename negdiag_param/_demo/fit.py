"""Weights for windows of the data, by training and in closed form, and what they forecast."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from negdiag_param import negative_diagonals, register_negative_diagonal
from negdiag_param._demo.data import Data

STEPS = 2000  # of training
HORIZON = 5  # rows of a forecast
SUBSTEPS = 50  # from one row to the next
LONGEST, MOST = 30, 200  # rows of a window, and windows


def windows(data: Data) -> list[range]:
    """The ranges of rows that are fitted; a row to forecast follows each.

    The shortest have as many changes as a state has coefficients.
    """
    rows, shortest = len(data.times), int(data.mask.sum(1).max()) + 1
    lengths = range(shortest, min(rows, LONGEST + 1))
    found = [range(start, start + length) for length in lengths for start in range(rows - length)]
    return found[:: -(-len(found) // MOST)]


class Dynamics(nn.Module):
    """A linear layer for each window, whose weight is zero wherever its mask is."""

    def __init__(self, windows: int, mask: Tensor, diagonal: float) -> None:
        super().__init__()
        start = diagonal * torch.eye(*mask.shape, dtype=mask.dtype)
        self.weight = nn.Parameter(start.repeat(windows, 1, 1))
        self.mask = mask

    def forward(self, inputs: Tensor) -> Tensor:
        """The rates of change, of shape (window, row, state)."""
        return inputs @ (self.weight * self.mask).mT


class Comparison:
    """One data set, fitted and forecast in several ways.

    A change is explained by the row before it (``"forward"``) or by the mean of the rows before and
    after it (``"midpoint"``). Constrained diagonals are at most ``-margin`` per unit of time.
    """

    def __init__(self, data: Data, kind: str, margin: float = 0.0, map: Any = "clamp") -> None:
        self.data, self.kind, self.windows = data, kind, windows(data)
        # Values are in units of a window's means, times in units of the mean gap.
        self.means = torch.stack([data.values[window].mean(0) for window in self.windows])
        self.gap = float(data.times.diff().mean())
        inputs, rates = [], []
        for window, mean in zip(self.windows, self.means, strict=True):
            values, gaps = data.values[window] / mean, data.times[window].diff() / self.gap
            places = (values[1:] + values[:-1]) / 2 if kind == "midpoint" else values[:-1]
            inputs.append(data.inputs(places))
            rates.append(data.transform(values).diff(dim=0) / gaps[:, None])
        self.inputs = pad_sequence(inputs, batch_first=True)
        self.rates = pad_sequence(rates, batch_first=True)

        every = torch.ones(len(self.windows), min(data.mask.shape), dtype=torch.bool)
        free = self.solve(dropped=~every)
        constrained, self.kept = self.train(margin, map)
        is_wrong = free.diagonal(dim1=1, dim2=2) >= 0
        self.wrong = is_wrong.any(1)
        self.weights = {
            "constrained": constrained,
            "free": free,
            "clamped by hand": self.train(margin, map, by_hand=True)[0],
            "wrong signs dropped": self.solve(dropped=is_wrong),
            "diagonal dropped": self.solve(dropped=every),
            "last row repeated": torch.zeros_like(free),
        }
        self.errors = {name: self.forecast(weight) for name, weight in self.weights.items()}

    def solve(self, dropped: Tensor) -> Tensor:
        """Least squares in closed form, without those diagonal entries that are dropped."""
        mask = self.data.mask.repeat(len(self.windows), 1, 1)
        mask.diagonal(dim1=1, dim2=2)[dropped] = 0
        design = self.inputs[:, None] * mask[:, :, None]  # of (window, state, row, input)
        solution = torch.linalg.lstsq(design, self.rates.mT[..., None], driver="gelsd").solution
        return torch.div(solution[..., 0], self.gap)

    def train(self, margin: float, map: Any, by_hand: bool = False) -> tuple[Tensor, bool]:
        """Least squares with a negative diagonal, and whether it was kept after each step.

        By hand, a plain weight is clamped after each step; else it is registered.
        """
        margin *= self.gap
        bound = -max(margin, torch.finfo(torch.float64).tiny)
        model = Dynamics(len(self.windows), self.data.mask, diagonal=bound - 1)
        if not by_hand:
            register_negative_diagonal(model, "weight", dims=(-2, -1), margin=margin, map=map)
        # Short windows are ill-conditioned: the optimizer needs a long memory.
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.95, 0.98))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        kept = True
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.autograd.backward((model(self.inputs) - self.rates).square().sum())
            optimizer.step()
            if by_hand:
                model.weight.detach().diagonal(dim1=1, dim2=2).clamp_(max=bound)
            schedule.step()
            for _, diagonal in negative_diagonals(model):
                kept = kept and bool((diagonal < 0).all() and (diagonal <= -margin).all())
        return (model.weight * model.mask).detach() / self.gap, kept

    @torch.no_grad()
    def forecast(self, weight: Tensor) -> Tensor:
        """Solves the equations from the last row of each window on, over the next rows.

        Returns the roots of the mean square errors: of amounts, or of log n.
        """
        data = self.data
        rows = torch.tensor([[w.stop - 1] for w in self.windows]) + torch.arange(HORIZON + 1)
        exist = rows[:, 1:] < len(data.times)
        rows = rows.clamp(max=len(data.times) - 1)
        observed = data.transform(data.values[rows] / self.means[:, None])

        def rates(state: Tensor) -> Tensor:
            values = state.exp() if data.are_counts else state
            return (weight @ data.inputs(values)[..., None])[..., 0]

        state, squares = observed[:, 0], []
        for row, gap in enumerate(data.times[rows].diff(dim=1).T[..., None], start=1):
            step = gap / SUBSTEPS
            for _ in range(SUBSTEPS):  # the classical Runge-Kutta method
                a = rates(state)
                b = rates(state + step / 2 * a)
                c = rates(state + step / 2 * b)
                d = rates(state + step * c)
                state = state + step / 6 * (a + 2 * b + 2 * c + d)
            misses = (state - observed[:, row]) * (1 if data.are_counts else self.means)
            squares.append(misses.square().mean(1))
        sums = torch.where(exist, torch.stack(squares, 1), 0).sum(1)
        return (sums / exist.sum(1)).sqrt().nan_to_num(torch.inf, torch.inf)  # where it ran off
