"""Derivatives of every kind and order."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import (
    ClampDiagonal,
    NegativeDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    register_negative_diagonal,
)
from tests.support.modules import LearnedScale
from tests.support.tables import MAKERS, MAPS, every_variant


def transformed() -> NegativeDiagonal:
    """What a transform is made into."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    register_negative_diagonal(module, map=MAPS["transform"], margin=0.1)
    return module.parametrizations.weight[0]


def learnt_scaling() -> Callable[[Tensor], Tensor]:
    """Of the original and, in the last row, of the scaling."""
    scaled = NegExpDiagonal(dominance="scaled")
    scaled.right_inverse(-torch.eye(3).double())
    return lambda x: torch.func.functional_call(scaled, {"eta": x[-1]}, (x[:-1],))


# Every map on one shape, and every shape with one map: neither plays a part in the other.
CASES: dict[str, tuple[Callable[[], Callable], tuple[int, ...]]] = {
    **{name: (partial(make, 0.1), (3, 3)) for name, make in MAKERS.items()},
    "transform": (transformed, (3, 3)),
    "without a margin": (NegExpDiagonal, (3, 3)),
    "wide": (NegExpDiagonal, (2, 4)),
    "blocks": (partial(NegExpDiagonal, blocks=2), (4, 2, 2)),
    "center": (partial(NegExpDiagonal, blocks=2, taps="center"), (2, 1, 3, 2)),
    "batch": (partial(NegExpDiagonal, dims=(-2, -1)), (2, 2, 2)),
    "vector": (NegExpDiagonal, (3,)),
    "rows": (partial(NegExpDiagonal, dominance="rows"), (3, 3)),
    "columns": (partial(NegExpDiagonal, dominance="columns"), (3, 3)),
    "columns of blocks": (partial(NegExpDiagonal, dominance="columns", blocks=2), (4, 2)),
    "rows of clamp": (partial(ClampDiagonal, dominance="rows"), (3, 3)),
    "rows of a batch": (partial(NegExpDiagonal, dominance="rows", dims=(-1, -2)), (2, 2, 2)),
    "rows around a center": (
        partial(NegExpDiagonal, dominance="rows", blocks=2, taps="center"),
        (4, 2, 2),
    ),
    "scaled": (learnt_scaling, (4, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_derivatives_of_every_kind_are_right(case):
    make, shape = CASES[case]
    parametrization = make()
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    if isinstance(parametrization, ClampDiagonal):
        # Where differences tell the slope, which beyond the bound they do not.
        x.diagonal().copy_(-0.2 - x.diagonal().abs())
    x.requires_grad_()
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
    batched = torch.autograd.functional.hessian(energy, x, vectorize=True)
    torch.testing.assert_close(batched, expected)
    jacobians = torch.func.jacrev, torch.func.jacfwd
    for outer in jacobians:
        for inner in jacobians:
            torch.testing.assert_close(outer(inner(energy))(x), expected)
    batch = torch.randn((2, *shape), dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.vmap(parametrization)(batch), torch.stack([parametrization(b) for b in batch])
    )


@every_variant
def test_all_orders_are_finite_where_the_value_overflows(name):
    for x in (-200.0, 39.0, 88.7, 89.0, 200.0, 1e30):
        original = torch.full((1, 1), x, requires_grad=True)
        for function in (MAKERS[name](), lambda o: torch.func.vmap(MAKERS[name]())(o[None])):
            derivative = function(original).sum()
            for _ in range(3):
                if not derivative.requires_grad:
                    break  # that of a constant slope
                (derivative,) = torch.autograd.grad(derivative.sum(), original, create_graph=True)
                assert derivative.isfinite().all(), (x, derivative)


@pytest.mark.parametrize("beta", [1e-5, 1.0, 1e5])
def test_large_gradients_come_through_softplus_in_every_form(beta):
    parametrization = NegSoftplusDiagonal(beta=beta)
    x = torch.tensor([-50.0, -1.0, 0.0, 1.0, 50.0]) / beta
    upstream = torch.full_like(x, 3e35)
    leaf = x.clone().requires_grad_()
    (eager,) = torch.autograd.grad(parametrization(leaf), leaf, upstream)
    expected = (upstream * -(beta * x.double()).sigmoid()).float()
    torch.testing.assert_close(eager, expected, rtol=1e-5, atol=0)
    _, pull_back = torch.func.vjp(parametrization, x)
    torch.testing.assert_close(pull_back(upstream)[0], expected, rtol=1e-5, atol=0)
    (again,) = torch.autograd.grad(parametrization(leaf), leaf, upstream, create_graph=True)
    torch.testing.assert_close(again.detach(), expected, rtol=1e-5, atol=0)


def test_a_map_that_learns_gets_its_gradient():
    parametrization = LearnedScale()
    parametrization(torch.randn(3, 3)).sum().backward()
    assert parametrization.scale.grad is not None
