"""Checks that a shard of the result is the result on a shard, bit for bit, without a collective."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from negdiag_param import (
    NegativeDiagonal,
    NegExpDiagonal,
    NegSoftplusDiagonal,
    SignFlipDiagonal,
    register_negative_diagonal,
)
from tests.distributed.ranks import Check


class NegSquareDiagonal(NegativeDiagonal):
    """A user's map, which comes without a slope."""

    def map(self, x: Tensor) -> Tensor:
        return -x.square() - 1e-3

    def inverse(self, d: Tensor) -> Tensor:
        return (-d - 1e-3).clamp(min=0).sqrt()


MAPS = (NegExpDiagonal, NegSoftplusDiagonal, SignFlipDiagonal, NegSquareDiagonal)
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


def meshes() -> Iterator[DeviceMesh]:
    ranks = dist.get_world_size()
    yield init_device_mesh("cpu", (2, 2) if ranks == 4 else (ranks,))


def layouts(ndim: int) -> Iterator[tuple[DeviceMesh, tuple[Placement, ...]]]:
    for mesh in meshes():
        each = [Replicate(), *(Shard(dim) for dim in range(ndim))]
        for placements in itertools.product(each, repeat=mesh.ndim):
            # A mesh of two dimensions is for what one cannot show.
            if mesh.ndim == 1 or Replicate() not in placements:
                yield mesh, placements


def shard(tensor: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> DTensor:
    return distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None)


def assert_parity(
    parametrization: NegativeDiagonal,
    shape: tuple[int, ...],
    mesh: DeviceMesh,
    placements: tuple[Placement, ...],
) -> None:
    x, grad = torch.randn(shape), torch.randn(shape)
    alone = x.clone().requires_grad_()
    weight = parametrization(alone)
    weight.backward(grad)
    inverse = parametrization.right_inverse(x)

    sharded = shard(x, mesh, placements).requires_grad_()
    with CommDebugMode() as debug:
        found = parametrization(sharded)
        found.backward(shard(grad, mesh, placements))
        found_inverse = parametrization.right_inverse(sharded)
    assert debug.get_total_counts() == 0
    with torch.no_grad():
        without_grad = parametrization(sharded)
    for ours, theirs in (
        (found, weight),
        (without_grad, weight),
        (sharded.grad, alone.grad),
        (found_inverse, inverse),
    ):
        assert ours.placements == placements
        assert ours.shape == theirs.shape
        if ours is not sharded.grad:  # of an empty shard, PyTorch reports other strides
            assert ours.stride() == theirs.stride()
        assert ours.to_local().equal(shard(theirs, mesh, placements).to_local()), (
            f"{parametrization} of {shape} for {placements}"
        )


def shards_have_parity(_: Path) -> None:
    for shape, options in CASES:
        for i, (mesh, placements) in enumerate(layouts(len(shape))):
            kind = MAPS[i % len(MAPS)]
            assert_parity(kind(infeasible="reflect", **options), shape, mesh, placements)


def every_map_has_parity(_: Path) -> None:
    mesh = next(meshes())
    for kind, margin, dim in itertools.product(MAPS, (0.0, 0.7), (0, 1)):
        parametrization = kind(margin=margin, infeasible="reflect")
        assert_parity(parametrization, (8, 6), mesh, (Shard(dim),) * mesh.ndim)


def every_dtype_has_parity(_: Path) -> None:
    mesh = next(meshes())
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x = torch.randn(7, 7).to(dtype)
        for kind in MAPS[:3]:
            found = kind()(shard(x, mesh, (Shard(0),) * mesh.ndim))
            assert found.dtype == dtype
            assert found.full_tensor().equal(kind()(x))


def second_derivatives_have_parity(_: Path) -> None:
    mesh = next(meshes())
    x, v = torch.randn(2, 7, 7, dtype=torch.float64)
    results = []
    for place in (lambda t: t, lambda t: shard(t, mesh, (Shard(0),) * mesh.ndim)):
        original = place(x).requires_grad_()
        loss = (NegExpDiagonal()(original) * place(v)).square().sum()
        (grad,) = torch.autograd.grad(loss, original, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), original)
        results.append(second)
    torch.testing.assert_close(results[1].full_tensor(), results[0])


def layers_have_parity(_: Path) -> None:
    """Through the helper, which infers blocks, and through assignment."""
    mesh = next(meshes())
    layers = {
        "weight": [nn.Conv2d(6, 6, 3, groups=2), nn.ConvTranspose1d(4, 4, 2), nn.Linear(5, 7)],
        "weight_hh_l0": [nn.LSTM(2, 3), nn.GRU(2, 5)],
    }
    for name, group in layers.items():
        for layer, dim in itertools.product(group, (0, 1)):
            torch.manual_seed(5)
            value = torch.randn_like(getattr(layer, name))
            alone, sharded = nn.Module(), nn.Module()
            for module, tensor in (
                (alone, value),
                (sharded, shard(value, mesh, (Shard(dim),) * mesh.ndim)),
            ):
                module.weight = nn.Parameter(tensor)
                blocks = {"Conv2d": 2, "LSTM": 4, "GRU": 3}.get(type(layer).__name__, 1)
                dims = (0, 1)
                register_negative_diagonal(module, dims=dims, blocks=blocks)
            assert sharded.weight.full_tensor().equal(alone.weight)
            other = alone.weight.detach() * 2
            for module in (alone, sharded):
                module.weight = other
            assert sharded.weight.full_tensor().equal(alone.weight)


def strided_shards_have_parity(_: Path) -> None:
    """What a rank holds under fully_shard on top of tensor parallelism, read outside forward."""
    mesh = next(meshes())
    if mesh.ndim == 1:
        mesh, placements = init_device_mesh("cpu", (dist.get_world_size(),)), None
        placements = (_StridedShard(0, split_factor=2),)
    else:
        placements = (_StridedShard(0, split_factor=2), Shard(0))
    for shape, options in (((12, 12), {}), ((24, 6), {"blocks": 4}), ((12, 3), {"blocks": 4})):
        x = torch.randn(shape)
        parametrization = SignFlipDiagonal(infeasible="reflect", **options)
        with CommDebugMode() as debug:
            found = parametrization(shard_strided(x, mesh, placements))
        assert debug.get_total_counts() == 0
        expected = shard_strided(parametrization(x), mesh, placements)
        assert found.placements == placements
        assert found.to_local().equal(expected.to_local())
    with pytest.raises(ValueError, match=r"weight: expected dimension 0 of .* divisible by"):
        parametrization(shard_strided(torch.randn(13, 13), mesh, placements))


def shard_strided(tensor: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> DTensor:
    """As the docstring of the placement has it: split into factors, then each into chunks."""
    coordinate = mesh.get_coordinate()
    pieces = [
        piece.chunk(mesh.size(0))[coordinate[0]]
        for piece in tensor.chunk(placements[0].split_factor)
    ]
    local = torch.cat(pieces)
    if len(placements) > 1:
        local = local.chunk(mesh.size(1))[coordinate[1]]
    return DTensor.from_local(
        local.detach().contiguous(), mesh, placements, shape=tensor.shape, stride=tensor.stride()
    )


def shards_compile_in_one_graph(_: Path) -> None:
    mesh = next(meshes())
    x = shard(torch.randn(9, 4), mesh, (Shard(0),) * mesh.ndim)
    eager, compiled = (x.clone().requires_grad_() for _ in range(2))
    parametrization = NegExpDiagonal(blocks=3)
    once = torch.compile(parametrization, fullgraph=True, backend="aot_eager")
    expected, found = parametrization(eager), once(compiled)
    torch.testing.assert_close(found.to_local(), expected.to_local())
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(compiled.grad.to_local(), eager.grad.to_local())


GRID_CHECKS: Iterable[Check] = [
    shards_have_parity,
    every_map_has_parity,
    strided_shards_have_parity,
]
CHECKS: Iterable[Check] = [
    shards_have_parity,
    every_map_has_parity,
    every_dtype_has_parity,
    second_derivatives_have_parity,
    layers_have_parity,
    strided_shards_have_parity,
    shards_compile_in_one_graph,
]
