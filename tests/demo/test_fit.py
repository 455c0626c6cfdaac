"""The community and its fits, free and constrained."""

import pytest
import torch

from negdiag_param._demo.data import HUDSON_BAY
from negdiag_param._demo.fit import Community, fit
from tests.demo.command import MAPS


@pytest.fixture(scope="module")
def fits():
    return {name: fit(HUDSON_BAY, name, steps=600, seed=0) for name in (None, *MAPS)}


def test_the_community_is_an_ordinary_module():
    model, n = Community(3), torch.rand(5, 3)
    assert type(model.linear) is torch.nn.Linear
    torch.testing.assert_close(
        model(n), n * (model.linear.bias + n @ model.linear.weight.T), rtol=1e-5, atol=1e-6
    )


def test_the_unconstrained_fit_is_least_squares(fits):
    design = torch.cat([torch.ones(20, 1, dtype=torch.float64), HUDSON_BAY.midpoints], 1)
    exact = torch.linalg.lstsq(design, HUDSON_BAY.growth).solution.T
    free = fits[None]
    found = torch.cat([free.growth[:, None], free.interactions], 1)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=0)
    residuals = HUDSON_BAY.growth - design @ exact.T
    assert free.ssr == pytest.approx(residuals.square().sum().item())
    assert free.interactions[0, 0] > 0


@pytest.mark.parametrize("map", MAPS)
def test_a_constrained_fit_is_negative_at_all_steps_and_tends_to_the_boundary(fits, map):
    result = fits[map]
    assert result.diagonals.shape == (601, 2)
    assert (result.diagonals < 0).all()
    assert torch.equal(result.diagonals[-1], result.interactions.diagonal())
    # The best fit without a self-interaction of the hare, which the constraint allows to approach.
    assert fits[None].ssr < result.ssr == pytest.approx(1.5859, rel=2e-3)
    assert result.growth.tolist() == pytest.approx([0.549, -0.699], rel=1e-2)
    assert -1e-4 < result.interactions[0, 0] < 0
    assert result.interactions[1, 1].item() == pytest.approx(-0.00529, rel=1e-2)


def test_a_seed_determines_the_fit_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (fit(HUDSON_BAY, "exp", steps=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.diagonals, again.diagonals)
    assert first.ssr == again.ssr
    assert not torch.equal(first.diagonals, other.diagonals)
    assert torch.equal(torch.get_rng_state(), state)
