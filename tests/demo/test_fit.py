"""Constrained fits are the best feasible ones, negative at each step; forecasts are solutions."""

from types import SimpleNamespace

import pytest
import torch

from negdiag_param import negative_diagonals
from negdiag_param._demo import fit
from negdiag_param._demo.data import ALPHA_PINENE, HUDSON_BAY, Data
from negdiag_param._demo.fit import Comparison, windows


def slopes(result, weight):
    """Derivatives of the sum of squares by the weight, in parts of the largest at zero."""
    mask = result.data.mask

    def derivatives(scaled):
        return (result.inputs @ (scaled * mask).mT - result.rates).mT @ result.inputs * mask

    return derivatives(weight * result.gap) / derivatives(0 * weight).abs().amax((1, 2), True)


def assert_is_best(result, margin):
    """Karush, Kuhn and Tucker: no slope but at the bound, and there only outwards."""
    weight = result.weights["constrained"]
    slope, diagonal = slopes(result, weight), weight.diagonal(dim1=1, dim2=2)
    at_bound, along = diagonal >= -margin - 1e-9, slope.diagonal(dim1=1, dim2=2)
    assert at_bound.any()
    assert (along[at_bound] < 1e-5).all()
    along[at_bound] = 0
    assert slope.abs().max() < 1e-5
    assert (diagonal <= -margin * (1 - 1e-12)).all()
    assert (diagonal < 0).all()


def test_constrained_fits_are_the_best_feasible_ones(results):
    for result in results:
        assert_is_best(result, 0.0)
    assert_is_best(Comparison(ALPHA_PINENE, "midpoint", margin=0.1), 0.1)


def test_the_rivals_solve_their_least_squares(results):
    for result in results:
        for name in ("free", "wrong signs dropped", "diagonal dropped"):
            weight = result.weights[name]
            assert slopes(result, weight)[weight != 0].abs().max() < 1e-8


def test_what_the_constrained_fits_equal(results):
    for result in results:
        constrained = result.weights["constrained"]
        assert torch.equal(constrained, result.weights["clamped by hand"])
        assert (constrained - result.weights["wrong signs dropped"]).abs().max() < 1e-3
        from_free = (constrained - result.weights["free"]).abs().amax((1, 2))
        assert torch.equal(from_free > 1e-3, result.wrong)


@pytest.mark.parametrize("map", ["clamp", "exp", "softplus", "square", "sign_flip"])
def test_the_diagonal_is_negative_at_every_step(monkeypatch, map):
    seen = []

    def watched(model):
        for name, diagonal in negative_diagonals(model):
            seen.append(diagonal.detach().clone())
            yield name, diagonal

    monkeypatch.setattr(fit, "negative_diagonals", watched)
    monkeypatch.setattr(fit, "STEPS", 60)
    assert Comparison(HUDSON_BAY, "midpoint", map=map).kept
    assert len(seen) == 60
    assert all((diagonal < 0).all() for diagonal in seen)


KNOWN = {
    "counts": (lambda t: 10 / (1 + 4 * (-0.5 * t).exp()), [[-0.05, 0.5]]),
    "amounts": (lambda t: 3 * (-0.2 * t).exp(), [[-0.2]]),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_forecasts_solve_the_equations(kind):
    values, weight = KNOWN[kind][0], torch.tensor(KNOWN[kind][1], dtype=torch.float64)
    times = torch.tensor([0, 1, 2, 3.5, 4, 6], dtype=torch.float64)
    data = Data("known", "year", times, values(times)[:, None], 0 * weight, kind == "counts")
    spans = [range(3), range(1, 5)]
    means = torch.stack([data.values[span].mean(0) for span in spans])
    scaled = weight * data.inputs(means)[:, None] / (1 if data.are_counts else means[:, None])
    result = SimpleNamespace(data=data, windows=spans, means=means)
    assert Comparison.forecast(result, scaled).max() < 1e-6
    truth = data.transform(data.values)
    expected = [(truth[s.stop :] - truth[s.stop - 1]).square().mean().sqrt() for s in spans]
    torch.testing.assert_close(Comparison.forecast(result, 0 * scaled), torch.stack(expected))
    assert Comparison.forecast(result, 0 * scaled + 1e3).tolist() == [torch.inf] * 2


def test_windows_are_all_that_suffice_and_leave_a_row():
    assert windows(HUDSON_BAY) == [range(i, i + n) for n in range(4, 21) for i in range(21 - n)]
    long = Data("long", "day", torch.arange(400.0), torch.ones(400, 1), torch.ones(1, 2), True)
    assert 100 < len(windows(long)) <= 200
