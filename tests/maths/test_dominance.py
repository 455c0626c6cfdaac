"""A diagonal that dominates: in real arithmetic, while training, assigned, kept and traced."""

import copy
import math
import pickle
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from negdiag_param import (
    ClampDiagonal,
    NegExpDiagonal,
    init_,
    negative_diagonals,
    plain_state_dict,
    remove_negative_diagonal,
)
from negdiag_param import register_negative_diagonal as register
from tests.support.asserts import assert_same_bits
from tests.support.tables import BUILT_IN, DTYPES, MAPS, every_dtype

KINDS = ("rows", "columns", "scaled")
N = 6
STEPS = 25


def off_diagonal(matrices: Tensor) -> Tensor:
    return matrices - torch.diag_embed(matrices.diagonal(0, -2, -1))


def scaled(weight: Tensor, eta: Tensor | None) -> Tensor:
    """In float64, and similar to ``weight`` under the scaling, if there is one."""
    if eta is None:
        return weight.detach().double()
    scaling = eta.detach().double().exp()
    return weight.detach().double() * scaling[..., None, :] / scaling[..., :, None]


def sums(weight: Tensor, kind: str, eta: Tensor | None = None) -> Tensor:
    """What the diagonal has to outweigh in the matrices of the last two dimensions."""
    return off_diagonal(scaled(weight, eta)).abs().sum(-2 if kind == "columns" else -1)


def eta_of(module: nn.Module) -> Tensor | None:
    return getattr(module.parametrizations.weight[0], "eta", None)


def excess(module: nn.Module, kind: str) -> Tensor:
    weight = module.weight.detach()
    return weight.double().diagonal(0, -2, -1) + sums(weight, kind, eta_of(module))


def size_of_exponential(matrix: Tensor, kind: str) -> Tensor:
    norm = 1 if kind == "columns" else math.inf
    return torch.linalg.matrix_norm(torch.linalg.matrix_exp(matrix), norm)


def dominant(kind: str, slack: float = 0.5) -> Tensor:
    """A matrix that is dominated as ``kind`` says, and for "scaled" in no other way."""
    torch.manual_seed(3)
    eta = torch.linspace(-1, 1, N).double() * (math.log(10) if kind == "scaled" else 0.0)
    others = scaled(off_diagonal(torch.randn(N, N)), -eta)
    return (others - torch.diag(sums(others, kind, eta) + 0.1 + slack)).float()


def layer(kind: str, map: Any = "clamp", **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    return register(nn.Linear(N, N), map=map, margin=0.1, dominance=kind, **options)


@every_dtype
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_it_dominates_at_every_step_whatever_the_loss_wants(name, kind, dtype):
    torch.manual_seed(0)
    for margin in (0.0, 0.1):
        options = {"margin": margin, "dims": (-2, -1), "dominance": kind}
        module = nn.Module()
        module.weight = nn.Parameter(torch.randn(2, N, N).to(dtype))
        register(module, map=name, **options)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for step in range(STEPS):
            left = excess(module, kind)
            assert (left <= -margin).all(), step
            assert (left < 0).all(), step
            optimizer.zero_grad()
            weight = module.weight
            assert weight.isfinite().all()
            others = off_diagonal(weight).abs().clamp(max=3)
            (-weight.diagonal(0, -2, -1).sum() - 0.3 * others.sum()).backward()
            assert all(p.grad.isfinite().all() for p in module.parameters())
            optimizer.step()
        weight = scaled(module.weight, eta_of(module))
        assert torch.linalg.eigvals(weight).real.max() <= -margin + 1e-9
        for time in (0.1, 1.0, 10.0):
            size = size_of_exponential(weight * time, kind)
            assert (size <= math.exp(-margin * time) * (1 + 1e-9)).all()


@every_dtype
@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_sums_are_rounded_up_and_differences_down(kind, dtype):
    """Over entries that differ so much that most of them are lost in ordinary sums."""
    torch.manual_seed(0)
    largest = torch.finfo(dtype).max / 4096
    for exponent in (-20.0, 0.0, math.log2(largest)):
        spread = 24 * torch.rand(64, 64, dtype=torch.float64)
        x = torch.randn(64, 64, dtype=torch.float64) * 2.0 ** (exponent - spread)
        x = x.clamp(-largest, largest).to(dtype)
        for margin in (0.0, 0.1):
            weight = ClampDiagonal(margin, dominance=kind)(x)
            others = off_diagonal(weight).double().abs()
            lines = zip(weight.diagonal(), others if kind == "rows" else others.T, strict=True)
            assert all(math.fsum([d.item(), *line.tolist(), margin]) <= 0 for d, line in lines)
            assert_same_bits(off_diagonal(weight), off_diagonal(x))


@every_dtype
def test_a_sum_beyond_the_dtype_leaves_a_finite_diagonal(dtype):
    x = torch.full((3, 3), torch.finfo(dtype).max, dtype=dtype, requires_grad=True)
    for kind in KINDS:
        weight = NegExpDiagonal(dominance=kind)(x)
        assert (weight.diagonal() == torch.finfo(dtype).min).all()
        (gradient,) = torch.autograd.grad(weight.diagonal().sum(), x)
        assert gradient.isfinite().all()
        with pytest.raises(ValueError, match=r"absolute sum is beyond the largest number"):
            NegExpDiagonal(dominance=kind, infeasible="reflect").right_inverse(weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAPS)
def test_a_dominated_matrix_is_assigned_and_keeps_its_bits(name, kind, recwarn):
    module, value = layer(kind, MAPS[name]), dominant(kind)
    module.weight = value
    torch.testing.assert_close(module.weight.detach(), value, rtol=1e-6, atol=0)
    assert_same_bits(off_diagonal(module.weight), off_diagonal(value))
    if name == "clamp":
        assert_same_bits(module.weight, value)
    original = module.parametrizations.weight.original
    at_the_boundary = torch.randn(N, N) + 3 * torch.eye(N) * (name == "clamp")
    for values in (original.detach().clone(), at_the_boundary):
        original.data.copy_(values)
        before = module.weight.detach().clone()
        module.weight = before
        assert_same_bits(module.weight, before)
    assert not recwarn.list


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_dominated_is_lowered_or_refused_by_name(kind):
    value = dominant("rows" if kind == "scaled" else kind)
    value[2, 2] = 1.0
    line = "column" if kind == "columns" else "row"
    module = layer(kind, infeasible="warn")
    failing = rf"got . of {N} {line}s that fail, {line} 2 by \d"
    with pytest.warns(UserWarning, match=f"{failing}.*lowered as far as needed"):
        module.weight = value
    assert (excess(module, kind) <= -0.1).all()
    assert_same_bits(off_diagonal(module.weight), off_diagonal(value))
    plain = nn.Linear(N, N)
    plain.weight.data = value
    with pytest.raises(ValueError, match=failing):
        register(plain, margin=0.1, dominance=kind, infeasible="error")
    assert type(plain) is nn.Linear


LACKING = torch.tensor([[-3.0, 1.0], [2.0, -1.5]])
INFINITE = torch.tensor([[-5.0, math.inf], [0.0, -5.0]])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (LACKING, r"got 1 of 2 rows that fail, row 1 by 1;"),
        (torch.stack([-torch.eye(2), LACKING]), r"got 1 of 4 .*, row 1 of matrix 1 by 1;"),
        (INFINITE, r"expected finite rows, got 1 of 2 rows with NaN"),
    ],
)
def test_the_line_that_fails_is_named_with_what_it_lacks(value, message):
    options = {"dims": (-2, -1), "dominance": "rows", "infeasible": "error"}
    with pytest.raises(ValueError, match=message):
        ClampDiagonal(0.5, **options).right_inverse(value)


def test_a_scaling_is_kept_where_it_does_and_found_where_there_is_one():
    module = layer("scaled")
    assert eta_of(module).eq(0).all()
    module.weight = dominant("rows")
    assert eta_of(module).eq(0).all()
    module.weight = dominant("scaled")
    found = eta_of(module).detach().clone()
    assert found.ne(0).all()
    parametrization, further = module.parametrizations.weight[0], dominant("scaled", slack=1.0)
    original = parametrization.right_inverse(further)  # with gradients on, unlike an assignment
    torch.testing.assert_close(parametrization(original), further)
    assert_same_bits(eta_of(module), found)
    triangle = torch.full((N, N), 9.0).triu(1) - torch.eye(N)  # reducible: no Perron vector
    module.weight = triangle
    assert_same_bits(module.weight, triangle)
    eta_of(module).requires_grad_()
    module.weight.sum().backward()
    assert eta_of(module).grad.ne(0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_it_lives_as_other_layers_do(kind, recwarn):
    module, stock = layer(kind, "exp", cache_in_eval=True), nn.Linear(N, N)
    module.weight = dominant(kind)
    weight = module.weight.detach().clone()
    assert_same_bits(dict(negative_diagonals(module))["weight"], weight.diagonal())
    loaded, from_plain = layer(kind, "exp"), layer(kind, "exp")
    loaded.load_state_dict(module.state_dict())
    stock.load_state_dict(plain_state_dict(module))
    from_plain.load_state_dict(stock.state_dict())
    copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    for again in (*copies, loaded, stock, from_plain):
        assert_same_bits(again.weight, weight)
    with pytest.raises(RuntimeError, match=rf"dominance='{kind}'.* found one of exp"):
        module.load_state_dict(register(nn.Linear(N, N), map="exp", margin=0.1).state_dict())
    module.eval()
    with torch.no_grad():
        assert module.weight is module.weight
        sources = [module.parametrizations.weight.original, eta_of(module)]
        for source in filter(lambda s: s is not None, sources):
            before = module.weight.clone()
            source[0].mul_(0.5) if source.ndim > 1 else source[0].add_(0.5)
            assert not torch.equal(module.weight, before)
    module.reset_parameters()
    assert (excess(module, kind) <= -0.1).all()
    init_(module, "weight", nn.init.normal_)
    assert (excess(module, kind) <= -0.1).all()
    weight = module.weight.detach().clone()
    assert type(remove_negative_diagonal(module)) is nn.Linear
    assert_same_bits(module.weight, weight)
    assert not recwarn.list


def test_an_assignment_that_fails_later_leaves_the_scaling():
    module = layer("scaled")
    module.weight = dominant("rows")
    both = nn.ModuleList([module, layer("scaled")])

    def first_only(tensor: Tensor, calls: list[int] = []) -> None:  # noqa: B006
        calls.append(0)
        tensor.copy_(dominant("scaled") if len(calls) == 1 else torch.full_like(tensor, math.nan))

    with pytest.raises(ValueError, match="finite rows"):
        init_(both, "*.weight", first_only)
    assert eta_of(module).eq(0).all()


@pytest.mark.parametrize("kind", ["rows", "columns"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_a_stable_matrix(kind, groups):
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 4, 3, padding="same", groups=groups, bias=False).double()
    register(convolution, taps="center", margin=0.1, dominance=kind, map="softplus")
    size = 4 * 5 * 5
    matrix = convolution(torch.eye(size).double().view(size, 4, 5, 5)).detach().view(size, size).T
    assert (matrix.diagonal() + sums(matrix, kind) <= -0.1 + 1e-12).all()
    assert torch.linalg.eigvals(matrix).real.max() <= -0.1
    assert size_of_exponential(matrix, kind) <= math.exp(-0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_and_other_rows_are_matrices_of_their_own(kind):
    module = register(nn.LSTM(3, N), "weight_hh_l0", dominance=kind, margin=0.1)
    eta = getattr(module.parametrizations.weight_hh_l0[0], "eta", None)
    gates = module.weight_hh_l0.view(4, N, N)
    left = gates.detach().double().diagonal(0, 1, 2) + sums(gates, kind, eta)
    assert (left <= -0.1).all()
    turned = ClampDiagonal(0.1, dims=(1, 0), dominance=kind, infeasible="reflect")
    value = turned.right_inverse(torch.randn(N, N))
    expected = ClampDiagonal(0.1, dominance=kind)(value.T).T
    torch.testing.assert_close(turned(value), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_step_the_original_is_at_the_bound(kind):
    module = layer(kind)
    optimizer = torch.optim.SGD(module.parameters(), lr=10.0)
    (-module.weight.diagonal().sum()).backward()
    optimizer.step()
    original = module.parametrizations.weight.original.detach()
    assert (original.diagonal() <= -0.1).all()
    assert (original.diagonal() > -0.11).all()


def test_the_scaling_trains_only_where_its_tensor_does():
    frozen = nn.Linear(N, N).requires_grad_(False)
    register(frozen, dominance="scaled")
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    module = nn.Linear(N, N)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    register(module, dominance="scaled")
    optimizer.add_param_group({"params": module.parametrizations.weight[0].eta})
    module(torch.randn(3, N)).square().sum().backward()
    optimizer.step()
    assert eta_of(module).ne(0).any()


@pytest.mark.slow
def test_compiled_they_dominate_as_well():
    """Compilers leave out roundings in between. One compilation for all.

    With a clamp, lines are at the very boundary: there is no slack that would hide it.
    """
    torch.compiler.reset()
    torch.manual_seed(0)
    made, leaves = [], []
    for kind, dtype, cls in product(KINDS, DTYPES, (ClampDiagonal, NegExpDiagonal)):
        made.append(cls(0.1, dominance=kind))
        made[-1].right_inverse(-torch.eye(16, dtype=dtype), "reflect")
        x = torch.randn(16, 16) * torch.logspace(-6, 2, 16)[:, None]
        leaves.append(x.to(dtype).requires_grad_())

    def all_of_them(*originals: Tensor) -> list[Tensor]:
        return [each(x) for each, x in zip(made, originals, strict=True)]

    compiled = torch.compile(all_of_them, fullgraph=True, backend="inductor")(*leaves)
    for weight, each, x in zip(compiled, made, leaves, strict=True):
        eps, kind = torch.finfo(x.dtype).eps, each.options.dominance
        torch.testing.assert_close(weight, each(x), rtol=4 * eps, atol=0)
        left = weight.detach().double().diagonal() + sums(weight, kind, getattr(each, "eta", None))
        assert (left <= -0.1).all()
        grad = torch.randn(16, 16).to(x.dtype)
        found, expected = (
            torch.autograd.grad(w, x, grad, retain_graph=True)[0] for w in (weight, each(x))
        )
        torch.testing.assert_close(found, expected, rtol=64 * eps, atol=64 * eps)
