"""Derivatives of every kind and order."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import NegativeDiagonal, register_negative_diagonal
from tests.support.modules import OwnSquareDiagonal
from tests.support.tables import VARIANTS, every_map, every_margin

SHAPES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "square": ((3, 3), {}),
    "wide": ((2, 4), {}),
    "blocks": ((6, 2, 3), {"blocks": 2}),
    "center": ((4, 2, 3, 2), {"blocks": 2, "taps": "center"}),
    "batch": ((2, 3, 3), {"dims": (-2, -1)}),
    "vector": ((3,), {}),
}


def made(map: Any, margin: float) -> NegativeDiagonal:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    register_negative_diagonal(module, map=map, margin=margin)
    return module.parametrizations.weight[0]


def smooth_at(parametrization: NegativeDiagonal, x: Tensor) -> Tensor:
    """``x`` where differences tell the slope, which beyond a projection's bound they do not."""
    if parametrization.strict.is_projection:
        entries = parametrization.options.diagonal.view(x)
        entries.copy_(-parametrization.options.margin - 0.1 - entries.abs())
    return x


def assert_derivatives(parametrization: NegativeDiagonal, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x = smooth_at(parametrization, torch.randn(shape, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(
        parametrization,
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        parametrization, x, check_fwd_over_rev=True, check_batched_grad=True
    )

    def energy(x: Tensor) -> Tensor:
        return (parametrization(x) ** 3).sum()

    expected = torch.autograd.functional.hessian(energy, x)
    jacobians = torch.func.jacrev, torch.func.jacfwd
    for outer in jacobians:
        for inner in jacobians:
            torch.testing.assert_close(outer(inner(energy))(x), expected)
    batch = torch.randn((2, *shape), dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.vmap(parametrization)(batch), torch.stack([parametrization(b) for b in batch])
    )


@every_margin
@every_map
def test_every_map_has_all_derivatives(map, margin):
    assert_derivatives(made(map, margin), (3, 3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_shape_has_all_derivatives(name, shape):
    size, options = SHAPES[shape]
    assert_derivatives(VARIANTS[name](0.1, **options), size)


def test_a_learnable_map_gets_its_gradient():
    class Scaled(OwnSquareDiagonal):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def map(self, x: Tensor) -> Tensor:
            return super().map(x) * self.scale

    parametrization = Scaled()
    parametrization(torch.randn(3, 3)).sum().backward()
    assert parametrization.scale.grad is not None


@pytest.mark.parametrize("name", VARIANTS)
def test_all_orders_are_finite_where_the_value_overflows(name):
    for x in (-200.0, 39.0, 88.7, 89.0, 200.0, 1e30):
        original = torch.full((1, 1), x, requires_grad=True)
        for function in (VARIANTS[name](), lambda o: torch.func.vmap(VARIANTS[name]())(o[None])):
            derivative = function(original).sum()
            for _ in range(3):
                if not derivative.requires_grad:
                    break  # that of a constant slope
                (derivative,) = torch.autograd.grad(derivative.sum(), original, create_graph=True)
                assert derivative.isfinite().all(), (x, derivative)
