"""Distributed tensors: each rank works on its own shard, and no rank asks another."""

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import TypeIs

from negdiag_param._maths import kernel
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.strict import StrictMap
from negdiag_param._ranks import geometry, placements

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

_PLAIN = (Tensor, nn.Parameter)


def is_sharded(tensor: Tensor) -> "TypeIs[DTensor]":
    """Whether ``tensor`` is a DTensor; says so without importing them."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def constrain(original: Tensor, diagonal: Diagonal, strict: StrictMap) -> Tensor:
    """The constrained weight, distributed as ``original`` is."""
    if not is_sharded(original):
        return kernel.constrain(original, diagonal, strict)
    weight, parts = local(original, diagonal)
    if not (torch.compiler.is_compiling() or kernel.is_transformed(original)):
        weight = _Local.apply(original)  # type: ignore[no-untyped-call]
    for part in parts:
        weight = kernel.constrain(weight, part, strict)
    return _wrapped(weight if parts else weight.clone(), original)


def project_(original: Tensor, diagonal: Diagonal, strict: StrictMap) -> None:
    """Sets what this rank holds of the diagonal to the bound, where it is beyond."""
    held, parts = local(original, diagonal)
    for part in parts:
        kernel.project_(held, part, strict)


def local(tensor: Tensor, diagonal: Diagonal) -> tuple[Tensor, tuple[Diagonal, ...]]:
    """What this rank holds of ``tensor``, and where the diagonal lies in that."""
    if not is_sharded(tensor):
        return tensor, (diagonal,)
    shard = tensor.to_local()
    if not torch.compiler.is_compiling() and not _is_in_order(tensor.device_mesh):
        raise ValueError(
            f"expected a mesh that lists ranks in ascending order, which PyTorch places "
            f"shards by, got {tensor.device_mesh}"
        )
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:  # this rank holds nothing of the tensor
        return shard, ()
    compiling = torch.compiler.is_compiling()  # which takes no cached functions
    find = placements.parts.__wrapped__ if compiling else placements.parts
    return shard, find(
        tuple(tensor.shape),
        tuple(shard.shape),
        tuple(tensor.placements),
        tuple(tensor.device_mesh.shape),
        tuple(coordinate),
        diagonal,
    )


def mesh_dims(tensor: Tensor) -> int:
    """How many dimensions the mesh of ``tensor`` has; none for a plain one."""
    return tensor.device_mesh.ndim if is_sharded(tensor) else 0


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` as every rank would see it on its own. Gathers a distributed one."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def of_first_rank(value: Tensor, target: Tensor) -> Tensor:
    """The ``value`` of the first rank that shares ``target``. Broadcasts for a distributed one."""
    if not is_sharded(target):
        return value
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = target.device_mesh
    return distribute_tensor(value, mesh, [Replicate()] * mesh.ndim).to_local()


def aligned(value: Tensor, target: Tensor) -> Tensor:
    """``value`` distributed as ``target`` is, or else as a plain tensor, gathered if need be."""
    same = (
        is_sharded(value)
        and is_sharded(target)
        and value.device_mesh == target.device_mesh
        and value.placements == target.placements
    )
    return value if same else whole(value)


def like(value: Tensor, target: Tensor) -> Tensor:
    """``value``, of which every rank has all, distributed as ``target`` is."""
    if not is_sharded(target) or is_sharded(value):
        return value
    coordinate = target.device_mesh.get_coordinate()
    if coordinate is None:
        return _wrapped(value.new_empty(0), target)
    splits = placements.splits(
        tuple(target.placements), tuple(target.device_mesh.shape), tuple(coordinate)
    )
    for dim, runs in enumerate(geometry.owned(value.shape, splits)):
        pieces = [value.narrow(dim, run.start, len(run)) for run in runs]
        value = torch.cat(pieces, dim) if pieces else value.narrow(dim, 0, 0)
    return _wrapped(value, target)


@lru_cache(maxsize=256)
def _is_in_order(mesh: "DeviceMesh") -> bool:
    # Shards are scattered and gathered in the order of ranks, but cut by place in the mesh.
    return all(bool((mesh.mesh.diff(dim=dim) > 0).all()) for dim in range(mesh.ndim))


def _wrapped(shard: Tensor, model: "DTensor") -> Tensor:
    """``shard`` as this rank's part of a tensor distributed as ``model`` is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard,
        model.device_mesh,
        model.placements,
        run_check=False,
        shape=model.shape,
        stride=model.stride(),
    )


class _Local(torch.autograd.Function):
    """As ``to_local``, whose gradients have wrong strides where shards of columns are uneven.

    Before PyTorch 2.13 or a little earlier, accumulating those asks the other ranks.
    """

    @staticmethod
    def forward(ctx: Any, tensor: "DTensor") -> Tensor:
        ctx.model = tensor.detach()
        return tensor.to_local()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _wrapped(grad, ctx.model)
