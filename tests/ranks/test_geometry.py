"""A shard of the result is the result, for every shape, option, placement, map and dtype."""

import pytest
import torch

from negdiag_param import NegExpDiagonal
from tests.ranks.harness import on
from tests.ranks.layouts import CLASSES, along, assert_parity, layouts, mesh, shard
from tests.support.versions import COMPILED_SHARDS

# Shapes that are even, uneven, rectangular both ways and smaller than the number of ranks.
CASES: list[tuple[tuple[int, ...], dict[str, object]]] = [
    ((12, 12), {}),
    ((7, 5), {"margin": 0.5}),
    ((5, 9), {}),
    ((1, 4), {}),
    ((2, 2), {}),
    ((5, 7), {"dims": (1, 0)}),
    ((6,), {}),
    ((4, 6), {"dims": ()}),
    ((3, 5, 5), {"dims": (-2, -1)}),
    ((9, 4), {"blocks": 3}),
    ((20, 5), {"blocks": 4}),
    ((8, 1, 3), {"blocks": 8}),
    ((8, 4, 3, 3), {"blocks": 2}),
    ((6, 6, 5), {"taps": "center"}),
    ((6, 2, 3, 3), {"taps": "center", "blocks": 3}),
]


@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
@on(3, 4)
def test_shards_have_parity(shape: tuple[int, ...], options: dict[str, object]) -> None:
    where, dims = mesh(), options.get("dims") or (0, 1)
    for i, placements in enumerate(layouts(where, len(shape), dims)):
        kind = CLASSES[i % len(CLASSES)]
        assert_parity(kind(infeasible="reflect", **options), shape, where, placements)


@pytest.mark.parametrize(
    ("margin", "dim", "dtype"),
    [
        (0.0, 0, torch.float32),
        (0.7, 1, torch.float32),
        (0.0, 0, torch.float16),
        (0.0, 0, torch.bfloat16),
        (0.0, 0, torch.float64),
    ],
)
@on(3, 4)
def test_every_map_and_dtype_has_parity(margin: float, dim: int, dtype: torch.dtype) -> None:
    where = mesh()
    for kind in CLASSES:
        parametrization = kind(margin=margin, infeasible="reflect")
        assert_parity(parametrization, (8, 6), where, along(dim, where), dtype)


@on(2)
def test_the_gradients_of_a_sum_add_up() -> None:
    where = mesh()
    for kind in CLASSES:
        alone = torch.randn(6, 6).requires_grad_()
        sharded = shard(alone, where, along(0, where)).requires_grad_()
        for _ in range(2):
            kind()(alone).sum().backward()
            kind()(sharded).to_local().sum().backward()
        assert sharded.grad.full_tensor().equal(alone.grad)


@on(3)
def test_second_derivatives_have_parity() -> None:
    x, v = torch.randn(2, 7, 7, dtype=torch.float64)
    results = []
    for place in (lambda t: t, lambda t: shard(t, mesh(), along(0, mesh()))):
        original = place(x).requires_grad_()
        loss = (NegExpDiagonal()(original) * place(v)).square().sum()
        (grad,) = torch.autograd.grad(loss, original, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), original)
        results.append(second)
    torch.testing.assert_close(results[1].full_tensor(), results[0])


@COMPILED_SHARDS
@on(2)
def test_shards_with_several_lines_compile_in_one_graph() -> None:
    x = shard(torch.randn(9, 4), mesh(), along(0, mesh()))
    parametrization = NegExpDiagonal(blocks=3)
    once = torch.compile(parametrization, fullgraph=True, backend="aot_eager")
    results = []
    for call in (parametrization, once):
        original = x.clone().requires_grad_()
        found = call(original)
        found.sum().backward()
        results.append([found.to_local(), original.grad.to_local()])
    torch.testing.assert_close(*results)
