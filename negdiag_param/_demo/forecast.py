"""Forecasts: the communities fitted to windows of the data, integrated further."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from negdiag_param._demo.data import Observations
from negdiag_param._demo.fit import Fit, one_thread

SUBSTEPS = 50


@dataclass(frozen=True)
class Forecast:
    """What the communities of a fit say of the rows after their windows.

    ``counts`` holds the years ahead after the last row of each window, padded; ``rmse`` is the
    root of the mean square error of log n, infinite for a forecast that runs off to infinity.
    """

    counts: Tensor
    rmse: Tensor


@one_thread()
@torch.no_grad()
def forecast(data: Observations, fit: Fit, spans: Sequence[range], horizon: int) -> Forecast:
    """Integrates the last communities of a fit, one for each window, from its last row on."""
    ahead = [slice(span.stop - 1, span.stop + horizon) for span in spans]
    years = [data.years[a].diff() for a in ahead]
    gaps = pad_sequence(years, batch_first=True)
    truth = pad_sequence([data.counts[a].log() for a in ahead], batch_first=True)
    known = pad_sequence([torch.ones_like(y, dtype=torch.bool) for y in years], batch_first=True)
    growth, interactions = fit.growth[-len(spans) :], fit.interactions[-len(spans) :]

    def slope(log_n: Tensor) -> Tensor:
        return growth + (interactions @ log_n.exp()[:, :, None])[:, :, 0]

    log_n = [truth[:, 0]]
    for gap in gaps.T:
        log_n.append(runge_kutta(slope, log_n[-1], gap[:, None]))
    path = torch.stack(log_n, 1)
    errors = (path - truth)[:, 1:].square().mean(2)
    errors = torch.where(known, errors, 0).sum(1) / known.sum(1)
    return Forecast(path.exp(), errors.sqrt().nan_to_num(nan=torch.inf, posinf=torch.inf))


def runge_kutta(slope: Callable[[Tensor], Tensor], state: Tensor, time: Tensor) -> Tensor:
    """The state after ``time``, in fixed steps of the classical method of fourth order."""
    step = time / SUBSTEPS
    for _ in range(SUBSTEPS):
        a = slope(state)
        b = slope(state + step / 2 * a)
        c = slope(state + step / 2 * b)
        d = slope(state + step * c)
        state = state + step / 6 * (a + 2 * b + 2 * c + d)
    return state
