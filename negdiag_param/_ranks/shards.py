"""Distributed tensors: each rank works on its own shard, and no rank asks another.

A shard's rows and columns are ranges of the global ones. If they start at row r and column c, the
global diagonal is the one with the offset r - c, and what is left is the ordinary operation: on the
whole shard as a rule, and on up to three parts of it where it cuts through ``blocks``.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import TypeIs

from negdiag_param._maths import kernel
from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._maths.dominance import Dominance, Kind
from negdiag_param._maths.strict import StrictMap

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement

ORDER = "parallelize_module -> register_negative_diagonal -> fully_shard"

# The indices of a part of a shard, none if it is the whole, and the diagonal in it.
Part: TypeAlias = tuple[tuple[slice, ...], Diagonal]

_PLAIN = (Tensor, nn.Parameter)


def is_sharded(tensor: Tensor) -> "TypeIs[DTensor]":
    """Whether ``tensor`` is a DTensor; says so without importing them."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def mesh_dims(tensor: Tensor) -> int:
    """How many dimensions the mesh of ``tensor`` has; none for a plain one."""
    return tensor.device_mesh.ndim if is_sharded(tensor) else 0


def constrain(
    original: Tensor, diagonal: Diagonal, strict: StrictMap, dominance: Dominance | None = None
) -> Tensor:
    """The constrained weight, distributed as ``original`` is."""
    if not is_sharded(original):
        return kernel.constrain(original, diagonal, strict, dominance)
    operation = partial(kernel.constrain, strict=strict, dominance=dominance)
    if torch.compiler.is_compiling() or kernel.is_transformed(original):
        shard = original.to_local()
    else:
        shard = _Local.apply(original)  # type: ignore[no-untyped-call]
    found = _parts(original, shard, diagonal, dominance)
    if len(found) == 1 and not found[0][0]:
        weight = operation(shard, found[0][1])
    else:
        weight = shard.clone()
        for box, place in found:
            weight[box] = operation(shard[box], place)
    return _wrapped(weight, original)


def parts(
    tensor: Tensor, diagonal: Diagonal, dominance: Dominance | None = None
) -> list[tuple[Tensor, Diagonal]]:
    """Views of what this rank holds of ``tensor``, with the diagonal in each.

    Refuses placements that do not say exactly where it is, or keep ``dominance`` from its sums.
    """
    if not is_sharded(tensor):
        return [(tensor, diagonal)]
    shard = tensor.to_local()
    return [(shard[box], place) for box, place in _parts(tensor, shard, diagonal, dominance)]


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
    if is_sharded(value) and is_sharded(target) and value.device_mesh == target.device_mesh:
        return value if value.placements == target.placements else whole(value)
    return whole(value)


def like(value: Tensor, target: Tensor) -> Tensor:
    """``value``, of which every rank has all, distributed as ``target`` is."""
    if not is_sharded(target) or is_sharded(value):
        return value
    mesh, coordinate = target.device_mesh, target.device_mesh.get_coordinate()
    if coordinate is not None:
        for dim, held in enumerate(ranges(value.shape, target.placements, mesh, coordinate)):
            value = value.narrow(dim, held.start, len(held))
    return _wrapped(value.clone(), target)


class _Local(torch.autograd.Function):
    """As ``to_local``, whose gradients have wrong strides where shards of columns are uneven.

    Before PyTorch 2.13 or a little earlier, accumulating those asks the other ranks.
    """

    @staticmethod
    def forward(ctx: Any, tensor: "DTensor") -> Tensor:
        ctx.model = tensor.detach()
        return tensor.to_local().detach()  # the shard itself must not become a part of the graph

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # What repeats one entry, as the gradient of a sum does, takes no further gradients.
        return _wrapped(grad if all(grad.stride()) else grad.contiguous(), ctx.model)


def _wrapped(shard: Tensor, model: "DTensor") -> Tensor:
    """``shard`` as this rank's part of a tensor distributed as ``model`` is."""
    from torch.distributed.tensor import DTensor

    mesh, placements = model.device_mesh, model.placements
    return DTensor.from_local(
        shard, mesh, placements, run_check=False, shape=model.shape, stride=model.stride()
    )


def _parts(
    tensor: "DTensor", shard: Tensor, diagonal: Diagonal, dominance: Dominance | None
) -> tuple[Part, ...]:
    """The parts of ``shard``, which this rank holds of ``tensor``."""
    # Compilers take no cached functions.
    find = find_parts.__wrapped__ if torch.compiler.is_compiling() else find_parts
    mesh, kind = tensor.device_mesh, dominance.kind if dominance else None
    coordinate = tuple(mesh.get_coordinate() or ())
    shapes = tuple(tensor.shape), tuple(shard.shape)
    return find(*shapes, tuple(tensor.placements), mesh, coordinate, diagonal, kind)


@lru_cache(maxsize=4096)
def find_parts(
    shape: tuple[int, ...],
    found: tuple[int, ...],
    placements: "tuple[Placement, ...]",
    mesh: "DeviceMesh",
    coordinate: tuple[int, ...],
    diagonal: Diagonal,
    kind: Kind | None = None,
) -> tuple[Part, ...]:
    """The parts of a shard of shape ``found`` that hold diagonal entries; none may be left."""
    dims = diagonal.fitted(shape)
    taps = range(2, len(shape)) if diagonal.taps == "center" else range(0)
    if kind:
        needed, uncut = {
            "rows": ("shards of whole rows", {dims[1], *taps}),
            "columns": ("shards of whole columns", {dims[0], *taps}),
            "scaled": ("replicas", {*range(len(shape))}),
        }[kind]
        for placement, chunks in zip(placements, mesh.shape, strict=True):
            if chunks > 1 and getattr(placement, "dim", None) in uncut:
                raise ValueError(
                    f"expected {needed} for dominance={kind!r}, whose sums would otherwise need "
                    f"the other ranks, found {placements} of {shape} on {mesh}"
                )
    if len(coordinate) < mesh.ndim:  # this rank holds nothing of the tensor
        return ()
    held = ranges(shape, placements, mesh, coordinate)
    expected = tuple(map(len, held))
    if expected != found:
        raise ValueError(
            f"expected a shard of shape {expected} at {coordinate} of {mesh}, as "
            f"torch.chunk splits {shape} for {placements}, found {found}"
        )
    if not dims:
        return (((), diagonal),)
    cut: dict[int, slice] = {}  # by dimension
    for dim in taps:
        center = (shape[dim] - 1) // 2
        if center not in held[dim]:
            return ()
        if found[dim] < shape[dim]:
            cut[dim] = slice(center - held[dim].start, center - held[dim].start + 1)
    rows, columns = held[dims[0]], held[dims[1]]
    size = max(shape[dims[0]] // diagonal.blocks, 1)
    # The rows of a part lie within a block, or are those of whole blocks.
    first, last = -(-rows.start // size) * size, rows.stop // size * size
    cuts = {rows.start, min(first, rows.stop), max(last, rows.start), rows.stop}
    parts = []
    for start, stop in pairwise(sorted(cuts)):
        blocks = max((stop - start) // size, 1)
        offset = start % size - columns.start
        if -(stop - start) // blocks < offset < len(columns):
            if stop - start < len(rows):
                cut[dims[0]] = slice(start - rows.start, stop - rows.start)
            box = tuple(cut.get(dim, slice(None)) for dim in range(len(shape))) if cut else ()
            parts.append((box, Diagonal(dims, blocks, diagonal.taps, offset)))
    return tuple(parts)


def ranges(
    shape: Sequence[int],
    placements: "Sequence[Placement]",
    mesh: "DeviceMesh",
    coordinate: Sequence[int],
) -> list[range]:
    """The global indices that a rank holds of each dimension; refuses what is not known exactly."""
    # Shards are scattered and gathered in the order of ranks, but cut by place in the mesh.
    known = torch.compiler.is_compiling() or all(
        bool((mesh.mesh.diff(dim=dim) > 0).all()) for dim in range(mesh.ndim)
    )
    every: list[Any] = [*zip(placements, mesh.shape, coordinate, strict=True)]
    splits = [split for split in every if not split[0].is_replicate()]
    pieces, strided = [1] * len(shape), set()
    for placement, chunks, _ in reversed(splits):
        known = known and type(placement).__name__ in {"Shard", "_StridedShard"}
        if known:
            dim, factor = placement.dim, getattr(placement, "split_factor", 1)
            strided |= {dim} if factor > 1 else set()
            known = dim not in strided or (factor == pieces[dim] and shape[dim] % factor == 0)
            pieces[dim] *= chunks
    if not known:
        raise ValueError(
            f"expected Shard or Replicate placements on a mesh that lists ranks in "
            f"ascending order, or such as fully_shard makes over tensor parallelism that splits "
            f"evenly, found {placements} of {shape} on {mesh}; redistribute the tensor first"
        )
    found = [range(size) for size in shape]
    # Strided shards split what is left.
    for placement, chunks, chunk in sorted(splits, key=lambda s: getattr(s[0], "split_factor", 1)):
        held = found[placement.dim]
        size = -(-len(held) // chunks)  # as torch.chunk has it
        found[placement.dim] = held[size * chunk : size * (chunk + 1)]
    return found
