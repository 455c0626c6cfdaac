"""Meshes, placements and shards, and what it means that a shard of the result is the result."""

import functools
import itertools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement
from torch.utils._python_dispatch import TorchDispatchMode

from negdiag_param import NegativeDiagonal
from negdiag_param._ranks import shards
from tests.support import tables

Placements = tuple[Placement, ...]


BUILT_IN = tuple(tables.BUILT_IN.values())
CLASSES = tuple(tables.CLASSES.values())


@functools.cache
def mesh() -> DeviceMesh:
    """All ranks in one line, or four of them in a square."""
    ranks = dist.get_world_size()
    return init_device_mesh("cpu", (2, 2) if ranks == 4 else (ranks,))


def layouts(mesh: DeviceMesh, ndim: int, rows_and_columns: tuple[int, ...]) -> Iterator[Placements]:
    # A mesh of two dimensions is for what one cannot show: shards of both dims of the diagonal.
    dims = rows_and_columns if mesh.ndim == 2 else range(ndim)
    each = [Replicate(), *(Shard(dim % ndim) for dim in dims if dim < ndim)]
    for placements in itertools.combinations_with_replacement(each, mesh.ndim):
        if mesh.ndim == 1 or Replicate() not in placements:
            yield placements


def along(dim: int, mesh: DeviceMesh) -> Placements:
    """Shards of one dimension only."""
    return (Shard(dim),) * mesh.ndim


def shard(tensor: Tensor, mesh: DeviceMesh, placements: Placements) -> DTensor:
    return distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None)


class Collectives(TorchDispatchMode):
    """Counts them. CommDebugMode follows the modules too, which takes as long as all the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented  # its parts come by later
        self.count += func.namespace in {"c10d", "_c10d_functional"}
        return func(*args, **kwargs or {})


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
