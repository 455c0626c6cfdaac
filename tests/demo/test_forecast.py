"""Forecasts are the solutions of the equations, and their errors what they miss."""

from types import SimpleNamespace

import pytest
import torch

from negdiag_param._demo.data import Observations
from negdiag_param._demo.forecast import forecast

YEARS = torch.tensor([0, 1, 2, 3.5, 4, 6], dtype=torch.float64)


def fit(growth, interactions):
    """Two fits, of which the last belongs to the only window."""
    return SimpleNamespace(
        growth=torch.tensor([[9.0, 9.0], growth], dtype=torch.float64),
        interactions=torch.tensor([torch.zeros(2, 2).tolist(), interactions], dtype=torch.float64),
    )


def observed(counts):
    return Observations("known", ("prey", "predator"), YEARS, counts)


def logistic(years):
    """Prey that grow by half a year at first and level off at ten, predators that die away."""
    prey = 10 / (1 + 4 * (-0.5 * years).exp())
    return torch.stack([prey, 3 * (-0.2 * years).exp()], 1)


@pytest.mark.parametrize("horizon", [1, 2, 3, 9])
def test_a_forecast_solves_the_equations(horizon):
    data = observed(logistic(YEARS))
    known = fit([0.5, -0.2], [[-0.05, 0.0], [0.0, 0.0]])
    found = forecast(data, known, [range(3)], horizon)
    ahead = min(horizon, 3)
    torch.testing.assert_close(found.counts[0], data.counts[2 : 3 + ahead])
    assert found.rmse.item() < 1e-7


def test_the_error_is_that_of_the_logarithms_of_the_rows_ahead():
    counts = torch.ones(6, 2, dtype=torch.float64)
    counts[3:, 0] = torch.tensor([1, 2, 3], dtype=torch.float64).exp()
    found = forecast(observed(counts), fit([0, 0], [[0, 0], [0, 0]]), [range(3)], 2)
    assert found.rmse.item() == pytest.approx(((1 + 4) / 4) ** 0.5)


def test_windows_near_the_end_are_forecast_as_far_as_there_are_rows():
    counts = torch.ones(6, 2, dtype=torch.float64)
    counts[5] = torch.e
    still = fit([0, 0], [[0, 0], [0, 0]])
    still.growth[0] = 0
    found = forecast(observed(counts), still, [range(2), range(5)], 3)
    assert found.rmse.tolist() == pytest.approx([0, 1])


def test_a_forecast_that_runs_off_to_infinity_has_an_infinite_error():
    found = forecast(observed(logistic(YEARS)), fit([1, 1], [[1, 0], [0, 1]]), [range(3)], 3)
    assert found.rmse.tolist() == [torch.inf]
