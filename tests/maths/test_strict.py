"""For every finite original the diagonal is strictly negative, and everything else its own."""

import pytest
import torch

from negdiag_param import NegExpDiagonal
from tests.support.asserts import assert_negative, assert_only_diagonal_differs
from tests.support.tables import (
    BUILT_IN,
    CLASSES,
    VARIANTS,
    every_dtype,
    every_margin,
    extremes,
    matrix,
    with_diagonal,
)


@every_dtype
@every_margin
@pytest.mark.parametrize("name", CLASSES)
def test_every_finite_original_gives_a_strictly_negative_diagonal(name, margin, dtype):
    parametrization = CLASSES[name](margin)
    original = with_diagonal(extremes(dtype)).requires_grad_()
    weight = parametrization(original)
    assert_negative(weight.diagonal(), margin)
    assert_only_diagonal_differs(weight, original, matrix)
    weight.backward(torch.full_like(weight, 3.0))
    assert original.grad is not None
    if name in BUILT_IN:
        assert original.grad.isfinite().all()


@pytest.mark.parametrize("name", VARIANTS)
def test_an_entry_at_zero_is_not_stuck(name):
    original = torch.zeros(2, 2, requires_grad=True)
    VARIANTS[name]()(original).sum().backward()
    least = 0.009 if name == "square" else 0.5
    assert (original.grad.diagonal().abs() >= least).all()


def test_sign_flip_has_the_slope_of_the_feasible_side_at_the_boundary():
    for margin in (0.0, 0.5):
        original = torch.full((1, 1), -margin, requires_grad=True)
        BUILT_IN["sign_flip"](margin)(original).backward()
        assert original.grad.item() == 1.0


def test_sign_flip_reflects_about_minus_margin():
    x = torch.tensor([[0.3]], dtype=torch.float64)
    assert BUILT_IN["sign_flip"](0.5)(x).item() == pytest.approx(-1.3)


def test_the_forums_printed_numbers():
    # https://discuss.pytorch.org/t/177339, with torch.manual_seed(2023)
    torch.manual_seed(2023)
    original = torch.randn(5, 5, requires_grad=True)
    weight = NegExpDiagonal()(original)
    printed = torch.tensor([-1.5380, -1.5262, -2.2668, -3.7607, -0.4784])
    torch.testing.assert_close(weight.diagonal(), printed, rtol=0, atol=5e-5)
    x = torch.randn(5, 5)
    (weight @ x).sum().backward()
    ones = torch.ones(5, 5)
    expected = ones @ x.T
    expected.diagonal().mul_(weight.detach().diagonal())
    torch.testing.assert_close(original.grad, expected)
