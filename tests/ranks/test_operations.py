"""What else the operation does on shards: dtypes, second derivatives, layers, compilation."""

import pytest
import torch
from torch import nn

from negdiag_param import NegExpDiagonal, register_negative_diagonal
from tests.ranks.harness import CLOCK, on
from tests.ranks.layouts import BUILT_IN, along, mesh, shard
from tests.support.versions import COMPILED_SHARDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLOCK)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@on(3)
def test_every_dtype_has_parity(dtype: torch.dtype) -> None:
    where = mesh()
    x = torch.randn(7, 7).to(dtype)
    for kind in BUILT_IN:
        found = kind()(shard(x, where, along(0, where)))
        assert found.dtype == dtype
        assert found.full_tensor().equal(kind()(x))


@on(3)
def test_second_derivatives_have_parity() -> None:
    where = mesh()
    x, v = torch.randn(2, 7, 7, dtype=torch.float64)
    results = []
    for place in (lambda t: t, lambda t: shard(t, where, along(0, where))):
        original = place(x).requires_grad_()
        loss = (NegExpDiagonal()(original) * place(v)).square().sum()
        (grad,) = torch.autograd.grad(loss, original, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), original)
        results.append(second)
    torch.testing.assert_close(results[1].full_tensor(), results[0])


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        (tuple(nn.Conv2d(6, 6, 3, groups=2).weight.shape), 2),
        (tuple(nn.ConvTranspose1d(4, 4, 2).weight.shape), 1),
        (tuple(nn.Linear(5, 7).weight.shape), 1),
        (tuple(nn.LSTM(2, 3).weight_hh_l0.shape), 4),
        (tuple(nn.GRU(2, 5).weight_hh_l0.shape), 3),
    ],
    ids=["conv", "transposed", "linear", "lstm", "gru"],
)
@on(3)
def test_layers_have_parity(shape: tuple[int, ...], blocks: int) -> None:
    """Through the helper and through assignment."""
    where = mesh()
    for dim in (0, 1):
        value = torch.randn(shape)
        alone, sharded = nn.Module(), nn.Module()
        alone.weight = nn.Parameter(value)
        sharded.weight = nn.Parameter(shard(value, where, along(dim, where)))
        for module in (alone, sharded):
            register_negative_diagonal(module, dims=(0, 1), blocks=blocks)
        assert sharded.weight.full_tensor().equal(alone.weight)
        other = alone.weight.detach() * 2
        for module in (alone, sharded):
            module.weight = other
        assert sharded.weight.full_tensor().equal(alone.weight)


@COMPILED_SHARDS
@on(2)
def test_shards_compile_in_one_graph() -> None:
    where = mesh()
    x = shard(torch.randn(9, 4), where, along(0, where))
    eager, compiled = (x.clone().requires_grad_() for _ in range(2))
    parametrization = NegExpDiagonal(blocks=3)
    once = torch.compile(parametrization, fullgraph=True, backend="aot_eager")
    expected, found = parametrization(eager), once(compiled)
    torch.testing.assert_close(found.to_local(), expected.to_local())
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(compiled.grad.to_local(), eager.grad.to_local())
