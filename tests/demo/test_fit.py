"""The community and its fits, free and constrained."""

import pytest
import torch

from negdiag_param._demo.data import HUDSON_BAY, Observations
from negdiag_param._demo.fit import Community, fit
from negdiag_param._demo.windows import windows
from tests.demo.command import MAPS

SPANS = [range(21), *windows(21, 8), *windows(21, 12)]


def fitted(margin, spans=SPANS, map=None, steps=500, seed=0, data=HUDSON_BAY):
    return fit(data, spans, margin, map=map, steps=steps, seed=seed)


@pytest.fixture(scope="module")
def free():
    return fitted(None)


def bounded(span, limit):
    """The exact fit to a span, every self-interaction at the limit if it would be above."""
    midpoints = HUDSON_BAY.midpoints[span.start : span.stop - 1]
    growth = HUDSON_BAY.growth[span.start : span.stop - 1]
    design = torch.cat([torch.ones_like(midpoints[:, :1]), midpoints], 1)
    ssr = 0.0
    for i in range(2):
        target, bound = growth[:, i : i + 1], -limit / midpoints[:, i].mean()
        solution = torch.linalg.lstsq(design, target).solution
        if solution[1 + i] > bound:
            rest = target - bound * midpoints[:, i : i + 1]
            solution = torch.linalg.lstsq(design[:, [0, 2 - i]], rest).solution
            ssr += (design[:, [0, 2 - i]] @ solution - rest).square().sum().item()
        else:
            ssr += (design @ solution - target).square().sum().item()
    return ssr


def test_the_community_is_a_batch_of_equations():
    model, n = Community(3), torch.rand(3, 5, 2)
    for i in range(3):
        expected = model.bias[i] + n[i] @ model.weight[i].T
        torch.testing.assert_close(model(n)[i], expected)
        assert torch.equal(model.weight[i], model.weight[0])


def test_the_free_fits_are_least_squares(free):
    for i, span in enumerate(SPANS):
        rows = slice(span.start, span.stop - 1)
        midpoints, growth = HUDSON_BAY.midpoints[rows], HUDSON_BAY.growth[rows]
        design = torch.cat([torch.ones_like(midpoints[:, :1]), midpoints], 1)
        exact = torch.linalg.lstsq(design, growth).solution.T
        found = torch.cat([free.growth[i][:, None], free.interactions[i]], 1)
        torch.testing.assert_close(found, exact, rtol=0.02, atol=1e-4)
    assert free.converged.all()
    assert not free.kept
    assert free.ssr[0].item() == pytest.approx(1.5605, rel=1e-4)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("map", [None, *MAPS])
def test_the_constrained_fits_are_the_best_within_their_bound(free, map, margin):
    result = fitted(margin, map=map)
    assert result.kept
    assert result.converged.all()
    assert result.diagonals.shape == (501, 2)
    assert (result.diagonals < 0).all()
    assert torch.equal(result.diagonals[-1], result.interactions[0].diagonal())
    for i, span in enumerate(SPANS):
        at_mean = result.interactions[i].diagonal() * HUDSON_BAY.midpoints[
            span.start : span.stop - 1
        ].mean(0)
        assert (at_mean <= -margin * (1 - 1e-12)).all()
        assert result.ssr[i].item() == pytest.approx(bounded(span, margin), rel=2e-3)
    assert result.ssr[0] > free.ssr[0]


@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
def test_before_its_end_a_fit_does_not_count_as_converged(margin):
    result = fitted(margin, steps=3)
    assert not result.converged.any()
    assert result.kept == (margin is not None)


@pytest.mark.parametrize("margin", [None, 0.0])
def test_the_diagonals_are_those_of_every_step(margin):
    short, long = (fitted(margin, steps=steps).diagonals for steps in (1, 20))
    torch.testing.assert_close(short[0], long[0])
    assert (long.diff(dim=0) != 0).all()


@pytest.mark.parametrize("margin", [None, 0.0])
def test_a_window_is_fitted_the_same_alone(margin):
    together, alone = fitted(margin, steps=50), fitted(margin, [SPANS[5]], steps=50)
    torch.testing.assert_close(together.interactions[5], alone.interactions[0])
    torch.testing.assert_close(together.ssr[5], alone.ssr[0])


@pytest.mark.parametrize("margin", [None, 0.0])
@pytest.mark.parametrize(("unit", "pace"), [(1e9, 1.0), (1e-90, 1.0), (1.0, 1e80), (1.0, 1e-80)])
def test_units_do_not_matter(margin, unit, pace):
    years, counts = HUDSON_BAY.years, HUDSON_BAY.counts
    other = Observations("other units", ("prey", "predator"), years * pace, counts * unit)
    one, two = (fitted(margin, steps=50, data=data) for data in (HUDSON_BAY, other))
    torch.testing.assert_close(two.interactions * unit * pace, one.interactions)
    torch.testing.assert_close(two.ssr * pace * pace, one.ssr)


def test_a_seed_determines_the_fit_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (fitted(0.0, steps=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.diagonals, again.diagonals)
    assert torch.equal(first.ssr, again.ssr)
    assert not torch.equal(first.diagonals, other.diagonals)
    assert torch.equal(torch.get_rng_state(), state)


def test_counts_that_never_change_are_fitted():
    still = Observations("still", ("prey", "predator"), torch.arange(9.0), torch.ones(9, 2))
    still = Observations("still", still.species, still.years.double(), still.counts.double())
    result = fitted(0.0, [range(9), range(8)], data=still)
    assert result.converged.all()
    assert result.interactions.isfinite().all()
