"""A diagonal that dominates: in real arithmetic, while training, assigned, kept and traced."""

import copy
import math
import pickle
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
from tests.support.tables import BUILT_IN, DTYPES, MAPS

KINDS = ("rows", "columns", "scaled")
N = 6
STEPS = 60


def off_diagonal(matrices: Tensor) -> Tensor:
    return matrices - torch.diag_embed(matrices.diagonal(0, -2, -1))


def sums(weight: Tensor, kind: str, eta: Tensor | None = None) -> Tensor:
    """What the diagonal has to outweigh, in float64, of the matrices in the last dimensions."""
    others = off_diagonal(weight.detach().double()).abs()
    if eta is not None:
        scaling = eta.detach().double().exp()
        others = others * scaling[..., None, :] / scaling[..., :, None]
    return others.sum(-2 if kind == "columns" else -1)


def eta_of(module: nn.Module) -> Tensor | None:
    return getattr(module.parametrizations.weight[0], "eta", None)


def excess(module: nn.Module, kind: str) -> Tensor:
    weight = module.weight.detach()
    return weight.double().diagonal(0, -2, -1) + sums(weight, kind, eta_of(module))


def dominant(kind: str, slack: float = 0.5, margin: float = 0.1, dtype: Any = None) -> Tensor:
    """A matrix that is dominated as ``kind`` says, and for "scaled" in no other way."""
    torch.manual_seed(3)
    others = off_diagonal(torch.randn(N, N, dtype=torch.float64))
    if kind == "scaled":
        scaling = torch.logspace(-1, 1, N, dtype=torch.float64)
        others = others * scaling[:, None] / scaling
        sizes = sums(others, kind, -scaling.log())
        sizes = (others.abs() @ scaling) / scaling
    else:
        sizes = sums(others, kind)
    return (others - torch.diag(sizes + margin + slack)).to(dtype or torch.float32)


def layer(kind: str, map: Any = "clamp", margin: float = 0.1, **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    return register(nn.Linear(N, N), map=map, margin=margin, dominance=kind, **options)


class Batch(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, N, N).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_it_dominates_at_every_step_whatever_the_loss_wants(name, kind, dtype):
    torch.manual_seed(0)
    for margin in (0.0, 0.1):
        module = register(
            Batch(dtype), map=name, margin=margin, dims=(-2, -1), dominance=kind, taps="all"
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
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
        weight = module.weight.detach().double()
        assert torch.linalg.eigvals(weight).real.max() <= -margin + 1e-9
        norm = 1 if kind == "columns" else math.inf
        if kind == "scaled":
            scaling = eta_of(module).detach().double().exp()
            weight = weight * scaling[..., None, :] / scaling[..., :, None]
        for time in (0.1, 1.0, 10.0):
            size = torch.linalg.matrix_norm(torch.linalg.matrix_exp(weight * time), norm)
            assert (size <= math.exp(-margin * time) * (1 + 1e-9)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
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
            left = [
                math.fsum([weight[i, i].item(), *line.double().abs().tolist(), margin])
                for i, line in enumerate(
                    off_diagonal(weight) if kind == "rows" else off_diagonal(weight).T
                )
            ]
            assert max(left) <= 0
            assert_same_bits(off_diagonal(weight), off_diagonal(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_beyond_the_dtype_leaves_a_finite_diagonal(dtype):
    x = torch.full((3, 3), torch.finfo(dtype).max, dtype=dtype, requires_grad=True)
    for kind in KINDS:
        weight = NegExpDiagonal(dominance=kind)(x)
        assert (weight.diagonal() == torch.finfo(dtype).min).all()
        (gradient,) = torch.autograd.grad(weight.diagonal().sum(), x)
        assert gradient.isfinite().all()
        with pytest.raises(ValueError, match=r"absolute sum is beyond the largest number"):
            NegExpDiagonal(dominance=kind, infeasible="reflect").right_inverse(weight)


def test_gradients_are_those_of_the_formula():
    x = torch.randn(N, N, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(N, N, dtype=torch.float64)
    for kind, price in (("rows", grad.diagonal()[:, None]), ("columns", grad.diagonal())):
        (found,) = torch.autograd.grad(ClampDiagonal(dominance=kind)(x), x, grad)
        expected = grad - off_diagonal(x.detach().sign() * price)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_gradients_of_the_scaling_are_right():
    parametrization = NegExpDiagonal(dominance="scaled")
    torch.manual_seed(0)
    x = parametrization.right_inverse(torch.randn(4, 4).double(), "reflect").requires_grad_()
    eta = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def weight(x: Tensor, eta: Tensor) -> Tensor:
        return torch.func.functional_call(parametrization, {"eta": eta}, (x,))

    torch.autograd.gradcheck(weight, (x, eta), check_batched_grad=True)
    torch.autograd.gradgradcheck(weight, (x, eta))


@pytest.mark.parametrize("kind", KINDS)
def test_torch_func_sees_the_same_function(kind):
    parametrization = NegExpDiagonal(dominance=kind)
    parametrization.right_inverse(torch.randn(N, N).double(), "reflect")
    x, tangent = torch.randn(2, N, N, dtype=torch.float64)
    weight = parametrization(x).detach()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(parametrization(leaf), leaf, tangent)
    gradient = torch.func.grad(lambda x: (parametrization(x) * tangent).sum())(x)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(torch.func.vmap(parametrization)(x[None])[0], weight)
    value, forward = torch.func.jvp(parametrization, (x,), (tangent,))
    torch.testing.assert_close(value, weight)
    torch.testing.assert_close((forward * tangent).sum(), (expected * tangent).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAPS)
def test_a_dominated_matrix_is_assigned_and_keeps_its_bits(name, kind, recwarn):
    module = layer(kind, MAPS[name])
    value = dominant(kind)
    module.weight = value
    torch.testing.assert_close(module.weight.detach(), value, rtol=1e-6, atol=0)
    assert_same_bits(off_diagonal(module.weight), off_diagonal(value))
    if name == "clamp":
        assert_same_bits(module.weight, value)
    before = module.weight.detach().clone()
    module.weight = before
    assert_same_bits(module.weight, before)
    assert not recwarn.list


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_weight_at_the_boundary_keeps_its_bits(name, kind):
    module = layer(kind, name)
    with torch.no_grad():
        module.parametrizations.weight.original.copy_(torch.randn(N, N))
        if name == "clamp":
            module.parametrizations.weight.original.diagonal().fill_(3.0)
    before = module.weight.detach().clone()
    module.weight = before
    assert_same_bits(module.weight, before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_dominated_is_lowered_or_refused_by_name(kind):
    value = dominant("rows" if kind == "scaled" else kind)
    value[2, 2] = 1.0
    line = "column" if kind == "columns" else "row"
    module = layer(kind, infeasible="warn")
    with pytest.warns(
        UserWarning, match=rf"got . of {N} {line}s that fail, {line} 2 by \d"
    ) as seen:
        module.weight = value
    assert "lowered as far as needed" in str(seen[0].message)
    assert (excess(module, kind) <= -0.1).all()
    assert_same_bits(off_diagonal(module.weight), off_diagonal(value))
    module = nn.Linear(N, N)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=rf"{line} \d by \d"):
        register(module, dominance=kind, infeasible="error")
    assert type(module) is nn.Linear
    assert_same_bits(module.weight, before["weight"])


def test_the_amount_is_what_the_line_lacks():
    value = torch.tensor([[-3.0, 1.0], [2.0, -1.5]])
    with pytest.raises(ValueError, match=r"got 1 of 2 rows that fail, row 1 by 1;"):
        ClampDiagonal(0.5, dominance="rows", infeasible="error").right_inverse(value)
    batch = torch.stack([-torch.eye(2), value])
    made = ClampDiagonal(0.5, dominance="rows", dims=(1, 2), infeasible="error")
    with pytest.raises(ValueError, match=r"got 1 of 4 rows that fail, row 1 of matrix 1 by 1;"):
        made.right_inverse(batch)


def test_nan_and_infinity_beside_the_diagonal_are_refused():
    value = -5 * torch.eye(3)
    value[0, 1] = math.inf
    with pytest.raises(ValueError, match=r"expected finite rows, got 1 of 3 rows with NaN"):
        ClampDiagonal(dominance="rows").right_inverse(value)


def test_a_scaling_is_kept_where_it_does_and_found_where_there_is_one():
    module = layer("scaled")
    assert eta_of(module).eq(0).all()
    module.weight = dominant("rows")
    assert eta_of(module).eq(0).all()
    module.weight = dominant("scaled")
    found = eta_of(module).detach().clone()
    assert found.ne(0).all()
    module.weight = dominant("scaled", slack=1.0)
    assert_same_bits(eta_of(module), found)
    triangle = torch.full((N, N), 9.0).triu(1) - torch.eye(N)  # reducible: no Perron vector
    module.weight = triangle
    assert_same_bits(module.weight, triangle)
    eta_of(module).requires_grad_()
    module.weight.sum().backward()
    assert eta_of(module).grad.ne(0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_it_lives_as_other_layers_do(kind, recwarn):
    module, other = layer(kind, "exp", cache_in_eval=True), layer(kind, "exp")
    module.weight = dominant(kind)
    weight = module.weight.detach().clone()
    assert_same_bits(dict(negative_diagonals(module))["weight"], weight.diagonal())
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same_bits(again.weight, weight)
    other.load_state_dict(module.state_dict())
    assert_same_bits(other.weight, weight)
    stock = nn.Linear(N, N)
    stock.load_state_dict(plain_state_dict(module))
    assert_same_bits(stock.weight, weight)
    plain = layer(kind, "exp")
    plain.load_state_dict(stock.state_dict())
    assert_same_bits(plain.weight, weight)
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
    norm = 1 if kind == "columns" else math.inf
    size = torch.linalg.matrix_norm(torch.linalg.matrix_exp(matrix), norm)
    assert size <= math.exp(-0.1)


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


@pytest.mark.parametrize("kind", KINDS)
def test_exported_and_traced_layers_are_the_same(kind):
    module = layer(kind, "softplus").eval()
    if kind == "scaled":
        nn.init.normal_(eta_of(module))
    batch = torch.randn(2, N)
    expected = module(batch)
    exported = torch.export.export(module, (batch,)).module()
    torch.testing.assert_close(exported(batch), expected)
    names = dict(exported.named_parameters())
    found = torch.autograd.grad(exported(batch).square().sum(), [*names.values()])
    own = dict(module.named_parameters())
    eager = torch.autograd.grad(expected.square().sum(), [own[name] for name in names])
    for one, another in zip(found, eager, strict=True):
        torch.testing.assert_close(one, another)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_it_dominates_as_well(kind, dtype):
    """Compilers leave out roundings in between."""
    torch.compiler.reset()
    parametrization = NegExpDiagonal(0.1, dominance=kind)
    parametrization.right_inverse(-torch.eye(16, dtype=dtype), "reflect")
    torch.manual_seed(0)
    x = (torch.randn(16, 16) * torch.logspace(-6, 2, 16)[:, None]).to(dtype).requires_grad_()
    weight = torch.compile(parametrization, fullgraph=True, backend="inductor")(x)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(weight, parametrization(x), rtol=4 * eps, atol=0)
    eta = getattr(parametrization, "eta", None)
    left = weight.detach().double().diagonal() + sums(weight, kind, eta)
    assert (left <= -0.1).all()
    grad = torch.randn(16, 16).to(dtype)
    found, expected = (torch.autograd.grad(w, x, grad)[0] for w in (weight, parametrization(x)))
    torch.testing.assert_close(found, expected, rtol=64 * eps, atol=64 * eps)
