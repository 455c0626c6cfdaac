"""For every finite original the diagonal is strictly negative, and gradients are finite."""

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import NegExpDiagonal, SignFlipDiagonal, register_negative_diagonal
from tests.support.asserts import assert_negative, assert_same_bits
from tests.support.modes import flushing
from tests.support.tables import (
    MAKERS,
    VARIANTS,
    every_dtype,
    every_maker,
    every_map,
    every_margin,
    every_variant,
    originals,
    smallest,
)


def assert_negative_here_and_there(diagonal: Tensor, margin: float) -> None:
    """Where the processor reads subnormal numbers as zero, and where it does not."""
    assert_negative(diagonal, margin)
    with flushing():
        assert (diagonal < 0).all()
        assert (diagonal.double() <= -margin).all()


@pytest.mark.parametrize("flushed", ["never", "in use", "made and in use"])
@every_dtype
@every_margin
@every_maker
def test_every_finite_original_gives_a_strict_value_and_finite_gradients(
    name, margin, dtype, flushed
):
    with flushing("made" in flushed):
        parametrization = MAKERS[name](margin, dims=())
    original = originals(dtype).requires_grad_()
    with flushing("use" in flushed):
        value = parametrization(original)
        assert_same_bits(parametrization(original.detach()), value)
    assert_negative_here_and_there(value, margin)
    if name not in VARIANTS:
        return  # whose slope is the user's affair

    def gradient(upstream: float) -> Tensor:
        upstreams = torch.full_like(value, upstream)
        return torch.autograd.grad(value, original, upstreams, retain_graph=True)[0]

    info = torch.finfo(dtype)
    for size in (1.0, info.tiny, smallest(dtype)):
        assert gradient(size).isfinite().all()
        assert_same_bits(gradient(-size), -gradient(size))
    # The largest may overflow where the map is steep, which loss scalers wait for; no NaN.
    largest, slope = gradient(info.max), gradient(1.0)
    assert largest[slope.abs() < 1].isfinite().all()
    assert not (largest.isnan() | (largest * slope < 0)).any()


@every_dtype
@every_margin
@every_map
def test_entries_near_zero_get_finite_originals_where_subnormals_are_flushed(map, margin, dtype):
    tiny = torch.finfo(dtype).tiny
    sizes = [0.0, -0.0, smallest(dtype), tiny / 2, tiny, 1e-45, 1.0]
    near_zero = -torch.tensor(sizes, dtype=torch.float64).to(dtype)
    module = nn.Module()
    module.weight = nn.Parameter(near_zero.clone())
    with flushing():
        register_negative_diagonal(module, map=map, margin=margin, infeasible="reflect")
        for _ in range(2):
            assert module.parametrizations.weight.original.isfinite().all()
            assert_negative_here_and_there(module.weight, margin)
            module.weight = near_zero


@every_variant
def test_an_entry_at_zero_is_not_stuck(name):
    original = torch.zeros(2, 2, requires_grad=True)
    VARIANTS[name]()(original).sum().backward()
    least = 0.009 if name == "square" else 0.5
    assert (original.grad.diagonal().abs() >= least).all()


def test_sign_flip_reflects_about_the_boundary_with_the_slope_of_the_feasible_side_there():
    for margin in (0.0, 0.5):
        original = torch.full((1, 1), -margin, requires_grad=True)
        SignFlipDiagonal(margin)(original).backward()
        assert original.grad.item() == 1.0
    x = torch.tensor([[0.3]], dtype=torch.float64)
    assert SignFlipDiagonal(0.5)(x).item() == pytest.approx(-1.3)


def test_the_forums_printed_numbers():
    """https://discuss.pytorch.org/t/177339"""
    torch.manual_seed(2023)
    original = torch.randn(5, 5, requires_grad=True)
    weight = NegExpDiagonal()(original)
    printed = torch.tensor([-1.5380, -1.5262, -2.2668, -3.7607, -0.4784])
    torch.testing.assert_close(weight.diagonal(), printed, rtol=0, atol=5e-5)
    weight.sum().backward()
    torch.testing.assert_close(original.grad.diagonal(), weight.diagonal())
