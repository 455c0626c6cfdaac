"""A shard of the result is the result, for every shape, option, placement, map and dtype."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from negdiag_param import (
    ClampDiagonal,
    NegativeDiagonal,
    NegExpDiagonal,
    register_negative_diagonal,
)
from negdiag_param._ranks import shards
from tests.ranks.asserts import Collectives
from tests.ranks.harness import on
from tests.ranks.kinds import mesh
from tests.support import tables
from tests.support.versions import COMPILED_SHARDS

Placements = tuple[Placement, ...]
CLASSES = tuple(tables.CLASSES.values())
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


def layouts(mesh: DeviceMesh, ndim: int, rows_and_columns: tuple[int, ...]) -> Iterator[Placements]:
    # A mesh of two dimensions is for what one cannot show: shards of both dims of the diagonal.
    dims = rows_and_columns if mesh.ndim == 2 else range(ndim)
    each = [Replicate(), *(Shard(dim % ndim) for dim in dims if dim < ndim)]
    for placements in itertools.combinations_with_replacement(each, mesh.ndim):
        if mesh.ndim == 1 or Replicate() not in placements:
            yield placements


def shard(tensor: Tensor, mesh: DeviceMesh, placements: Placements) -> DTensor:
    return distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None)


def assert_parity(
    parametrization: NegativeDiagonal,
    shape: tuple[int, ...],
    mesh: DeviceMesh,
    placements: Placements,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Bit for bit: value, gradient and inverse. The inverse alone asks the other ranks."""
    x, grad = torch.randn(2, *shape).to(dtype)
    alone = x.clone().requires_grad_()
    weight = parametrization(alone)
    weight.backward(grad)
    inverse = parametrization.right_inverse(x)

    sharded = shard(x, mesh, placements).requires_grad_()
    with Collectives() as collectives:
        found = parametrization(sharded)
        found.backward(shard(grad, mesh, placements))
    assert collectives.count == 0
    with Collectives() as collectives:
        found_inverse = parametrization.right_inverse(sharded)
    assert collectives.count == 2 * mesh.ndim  # how much each rank has to say, and that
    part = shards.like(inverse, sharded).to_local()
    assert part.untyped_storage().nbytes() == part.nbytes  # and keeps nothing else alive
    with torch.no_grad():
        assert not sharded.to_local().requires_grad  # the graphs are those of the DTensors
        without_grad = parametrization(sharded)
        held, original = without_grad.to_local(), sharded.to_local()
    assert not held.numel() or held.data_ptr() != original.data_ptr()
    for ours, theirs in (
        (found, weight),
        (without_grad, weight),
        (sharded.grad, alone.grad),
        (found_inverse, inverse),
        (shards.like(inverse, sharded), inverse),
    ):
        assert (ours.placements, ours.shape, ours.dtype) == (placements, theirs.shape, dtype)
        if ours is not sharded.grad:  # of an empty shard, PyTorch reports other strides
            assert ours.stride() == theirs.stride()
        assert ours.to_local().equal(shard(theirs, mesh, placements).to_local()), (
            f"{parametrization} of {shape} for {placements}"
        )


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
        assert_parity(parametrization, (8, 6), where, (Shard(dim),) * where.ndim, dtype)


@on(2)
def test_the_gradients_of_a_sum_add_up() -> None:
    where = mesh()
    for kind in CLASSES:
        alone = torch.randn(6, 6).requires_grad_()
        sharded = shard(alone, where, [Shard(0)]).requires_grad_()
        for _ in range(2):
            kind()(alone).sum().backward()
            kind()(sharded).to_local().sum().backward()
        assert sharded.grad.full_tensor().equal(alone.grad)


@on(3)
def test_second_derivatives_have_parity() -> None:
    x, v = torch.randn(2, 7, 7, dtype=torch.float64)
    results = []
    for place in (lambda t: t, lambda t: shard(t, mesh(), [Shard(0)])):
        original = place(x).requires_grad_()
        loss = (NegExpDiagonal()(original) * place(v)).square().sum()
        (grad,) = torch.autograd.grad(loss, original, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), original)
        results.append(second)
    torch.testing.assert_close(results[1].full_tensor(), results[0])


@COMPILED_SHARDS
@on(2)
def test_shards_with_several_lines_compile_in_one_graph() -> None:
    x = shard(torch.randn(9, 4), mesh(), [Shard(0)])
    parametrization = NegExpDiagonal(blocks=3)
    once = torch.compile(parametrization, fullgraph=True, backend="aot_eager")
    results = []
    for call in (parametrization, once):
        original = x.clone().requires_grad_()
        found = call(original)
        found.sum().backward()
        results.append([found.to_local(), original.grad.to_local()])
    torch.testing.assert_close(*results)


def shard_strided(tensor: Tensor) -> DTensor:
    """As fully_shard does it: each chunk of the second mesh dimension is split by the first."""
    where = mesh()
    i, j = where.get_coordinate()
    return DTensor.from_local(
        tensor.detach().chunk(2)[j].chunk(2)[i].contiguous(),
        where,
        (_StridedShard(0, split_factor=2), Shard(0)),
        shape=tensor.shape,
        stride=tensor.stride(),
    )


# On how many ranks, what they make, and what is said of it.
REFUSED: dict[str, tuple[int, Callable[[], DTensor], str]] = {
    "uneven strided shards": (
        4,
        lambda: shard_strided(torch.randn(13, 13)),
        "that splits evenly, found .*13, 13",
    ),
    "partial sums": (
        2,
        lambda: DTensor.from_local(torch.randn(7, 7), mesh(), [Partial()], run_check=False),
        "Shard or Replicate placements .* found .*Partial.*redistribute",
    ),
    "other shards than chunks": (
        2,
        lambda: DTensor.from_local(
            torch.randn(2 + 2 * dist.get_rank(), 6), mesh(), [Shard(0)], shape=(6, 6), stride=(6, 1)
        ),
        "a shard of shape",
    ),
    "a mesh with ranks out of order": (
        2,
        lambda: distribute_tensor(torch.randn(4, 4), DeviceMesh("cpu", [1, 0]), [Shard(0)]),
        "lists ranks in ascending order",
    ),
}


@pytest.mark.parametrize(("what", "ranks"), [(what, row[0]) for what, row in REFUSED.items()])
@on()
def test_what_does_not_tell_which_rows_a_rank_holds_is_refused(what: str) -> None:
    _, make, message = REFUSED[what]
    given, layer = make(), nn.Linear(7, 7, bias=False)
    layer.weight = nn.Parameter(given)
    parametrization = NegExpDiagonal(infeasible="reflect")
    for use in (
        lambda: parametrization(given),
        lambda: parametrization.right_inverse(given),
        lambda: register_negative_diagonal(layer),
    ):
        with pytest.raises(ValueError, match=f"(?s)weight: expected .*{message}"):
            use()
    assert type(layer) is nn.Linear


MAPS = ClampDiagonal, NegExpDiagonal
# Shapes, options, the dimension that is cut for each choice, and one that may not be.
DOMINATED = [
    ((7, 7), {}, {"rows": 0, "columns": 1}),
    ((12, 4), {"blocks": 3}, {"rows": 0, "columns": 1}),
    ((6, 3, 3), {"blocks": 2, "taps": "center"}, {"rows": 0, "columns": 1}),
    ((3, 4, 4), {"dims": (-2, -1)}, {"rows": 0, "columns": 0}),
]


@pytest.mark.parametrize("kind", ["rows", "columns"])
@on(2)
def test_shards_of_whole_rows_or_columns_have_parity(kind: str) -> None:
    """Without a collective. Sums may be rounded in another order."""
    for (shape, options, cut), cls in ((case, cls) for case in DOMINATED for cls in MAPS):
        parametrization = cls(dominance=kind, infeasible="reflect", **options)
        x, grad, where = torch.randn(shape).double(), torch.randn(shape).double(), mesh()
        alone = x.clone().requires_grad_()
        weight = parametrization(alone)
        weight.backward(grad)
        placements = (Shard(cut[kind]),)
        sharded = shard(x, where, placements).requires_grad_()
        with Collectives() as collectives:
            found = parametrization(sharded)
            found.backward(shard(grad, where, placements))
        assert collectives.count == 0
        inverse = parametrization.right_inverse(shard(weight, where, placements))
        pairs = [(found, weight), (sharded.grad, alone.grad), (parametrization(inverse), weight)]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-13, atol=1e-13)


@on(2)
def test_shards_that_end_within_a_row_are_refused() -> None:
    whole = torch.randn(4, 4)
    for kind, dim in (("rows", 1), ("columns", 0), ("scaled", 0), ("scaled", 1)):
        with pytest.raises(ValueError, match=rf"weight: expected .* for dominance='{kind}'.*ranks"):
            NegExpDiagonal(dominance=kind)(shard(whole, mesh(), (Shard(dim),)))
    replicas = NegExpDiagonal(dominance="rows", infeasible="reflect")
    found = replicas(shard(whole, mesh(), (Replicate(),)))
    assert found.full_tensor().equal(replicas(whole))
