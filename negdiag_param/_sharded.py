"""Distributed tensors: each rank works on its own shard, and no rank asks another.

The rows and the columns of a shard are ranges of the global ones. In a shard that starts at row
r and column c the global diagonal is the one with the offset r - c, so what is left to do is the
ordinary operation on an ordinary tensor, once for every such line: one as a rule, up to three
where a shard cuts through ``blocks``, and more for strided placements.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from negdiag_param import _kernel, _private
from negdiag_param._diagonal import Diagonal
from negdiag_param._kernel import Rule

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement

ORDER = "parallelize_module -> register_negative_diagonal -> fully_shard"
_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class Part(Diagonal):
    """A diagonal within a box of a shard: the start and the length in every dimension."""

    box: tuple[tuple[int, int], ...] = ()

    def view(self, tensor: Tensor) -> Tensor:
        """The entries of the diagonal, as a view of the shard."""
        for dim, (start, length) in enumerate(self.box):
            if length != tensor.shape[dim]:
                tensor = tensor.narrow(dim, start, length)
        return super().view(tensor)

    def scattered(self, tensor: Tensor, values: Tensor) -> Tensor:
        """A copy of the shard with ``values`` on the diagonal, differentiable in every mode."""
        return self._scattered(tensor, values, 0)

    def exported(self, tensor: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """As :meth:`scattered`: no exporter that needs another form takes distributed tensors."""
        return self.scattered(tensor, value(self.view(tensor)))

    def _scattered(self, tensor: Tensor, values: Tensor, dim: int) -> Tensor:
        if dim == len(self.box):
            return super().scattered(tensor, values)
        start, length = self.box[dim]
        inner = self._scattered(tensor.narrow(dim, start, length), values, dim + 1)
        return tensor.slice_scatter(inner, dim, start, start + length)


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether ``tensor`` is a DTensor; says so without importing them."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_in_motion(module: nn.Module) -> bool:
    """Whether what ``module`` computes from is distributed, or gathered for a while only.

    ``fully_shard`` gathers into the same memory without moving the version counter, so that a
    change of the shards cannot be noticed.
    """
    return _private.is_managed_by_fsdp(module) or any(
        tensor is not None and is_sharded(tensor)
        for tensor in (*module._parameters.values(), *module._buffers.values())
    )


def local(tensor: Tensor, diagonal: Diagonal, name: str) -> tuple[Tensor, tuple[Diagonal, ...]]:
    """What this rank holds of ``tensor``, and where the diagonal lies in that."""
    if not is_sharded(tensor):
        return tensor, (diagonal,)
    shard = tensor.to_local()
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:  # this rank holds nothing of the tensor
        return shard, ()
    find = _parts.__wrapped__ if torch.compiler.is_compiling() else _parts
    return shard, find(
        tuple(tensor.shape),
        tuple(shard.shape),
        tuple(tensor.placements),
        tuple(tensor.device_mesh.shape),
        tuple(coordinate),
        diagonal,
        name,
    )


def check(tensor: Tensor, diagonal: Diagonal, name: str) -> None:
    """Refuses placements that do not tell exactly which entries this rank holds."""
    local(tensor, diagonal, name)


def constrain(original: "DTensor", diagonal: Diagonal, rule: Rule, name: str) -> Tensor:
    """The constrained weight, distributed as ``original`` is."""
    weight, parts = local(original, diagonal, name)
    for part in parts:
        weight = _kernel.constrain(weight, part, rule)
    return _wrapped(weight if parts else weight.clone(), original)


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` as every rank would see it on its own. Gathers a distributed one."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def agreed(value: Tensor, target: Tensor) -> Tensor:
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
    placements, sizes = tuple(target.placements), tuple(target.device_mesh.shape)
    for dim, runs in enumerate(_owned(tuple(value.shape), placements, sizes, tuple(coordinate))):
        pieces = [value.narrow(dim, run.start, len(run)) for run in runs]
        value = torch.cat(pieces, dim) if pieces else value.narrow(dim, 0, 0)
    return _wrapped(value, target)


def backup(tensor: Tensor) -> Tensor:
    """What :func:`restore` needs to put the values of ``tensor`` back."""
    return tensor.detach().clone() if is_sharded(tensor) else tensor.detach()


def restore(tensor: Tensor, value: Tensor) -> None:
    """Undoes what happened to ``tensor`` since its :func:`backup`."""
    if is_sharded(tensor):
        tensor.copy_(value)
    elif tensor.data_ptr() != value.data_ptr():
        tensor.set_(value)  # type: ignore[call-overload]


def check_registrable(root: nn.Module, owner: nn.Module, name: str) -> None:
    """Refuses a module that data parallelism has taken hold of already.

    Raises:
        ValueError: if the parameters of ``owner`` belong to it.
    """
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in root.modules()):
        raise ValueError(
            f"{name}: expected a module that is not replicated yet, got a {type(root).__name__}; "
            f"the order is register_negative_diagonal -> DistributedDataParallel"
        )
    if _private.is_managed_by_fsdp(owner):
        raise ValueError(
            f"{name}: expected a module that is not sharded yet, got a {type(owner).__name__} "
            f"that fully_shard manages; the order is {ORDER}"
        )


def check_removable(owner: nn.Module, name: str) -> None:
    """Refuses to take parameters from under a ``fully_shard`` that manages them.

    Raises:
        ValueError: if one manages ``owner``.
    """
    if _private.is_managed_by_fsdp(owner):
        raise ValueError(
            f"{name}: expected a module that is not sharded, got a {type(owner).__name__} that "
            f"fully_shard manages; load plain_state_dict(model) into a model without the "
            f"negative diagonal instead"
        )


def check_assignable(owner: nn.Module, target: Tensor, name: str) -> None:
    """Refuses a write to a tensor that ``fully_shard`` has gathered and is about to drop.

    Raises:
        ValueError: if ``target`` is such a tensor.
    """
    if _private.is_managed_by_fsdp(owner) and not is_sharded(target):
        raise ValueError(
            f"{name}: expected a sharded tensor to assign to, got the gathered one of a forward "
            f"pass, which would lose the value; call reshard() on the module given to "
            f"fully_shard first"
        )


def check_parallelizable(new: Tensor | None, originals: list[Tensor], owner: nn.Module) -> None:
    """Refuses a parallel style that starts on a registered module, before it converts anything.

    Raises:
        ValueError: if ``new`` is distributed and an original is not.
    """
    if new is not None and is_sharded(new) and not all(is_sharded(o) for o in originals):
        raise ValueError(
            f"expected a {type(owner).__name__} without a negative diagonal to distribute, got a "
            f"registered one; the order is {ORDER}"
        )


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


@lru_cache(maxsize=4096)
def _parts(
    shape: tuple[int, ...],
    found: tuple[int, ...],
    placements: "tuple[Placement, ...]",
    mesh: tuple[int, ...],
    coordinate: tuple[int, ...],
    diagonal: Diagonal,
    name: str,
) -> tuple[Part, ...]:
    """The lines of the diagonal in the shard of one rank; none may be left.

    Raises:
        ValueError: if the placements do not say exactly what the rank was found to hold.
    """
    _check_placements(shape, placements, mesh, name)
    owned = _owned(shape, placements, mesh, coordinate)
    held = tuple(sum(len(run) for run in runs) for runs in owned)
    if held != found:
        raise ValueError(
            f"{name}: expected a shard of shape {held} at {coordinate} of a mesh of {mesh}, as "
            f"torch.chunk splits {shape} for {placements}, found {found}"
        )
    box = [(0, size) for size in held]
    dims = diagonal.resolved(len(shape))
    if not dims:
        return (Part((), box=tuple(box)),)
    row, column = dims
    if diagonal.taps == "center":
        for dim in range(2, len(shape)):
            tap = (shape[dim] - 1) // 2
            center = [at + run.index(tap) for at, run in _placed(owned[dim]) if tap in run]
            if not center:
                return ()
            box[dim] = center[0], 1
    parts = []
    size = max(shape[row] // diagonal.blocks, 1)
    for top, rows in _placed(owned[row]):
        for start, stop in _cuts(rows, size):
            for left, columns in _placed(owned[column]):
                # Where the line meets the first row of the box, in columns of the box.
                offset = start % size - columns.start
                blocks = max((stop - start) // size, 1)
                height = (stop - start) // blocks
                if -height < offset < len(columns):
                    box[row] = top + start - rows.start, stop - start
                    box[column] = left, len(columns)
                    parts.append(Part(dims, blocks, "all", offset, tuple(box)))
    return tuple(parts)


def _check_placements(
    shape: tuple[int, ...], placements: "tuple[Placement, ...]", mesh: tuple[int, ...], name: str
) -> None:
    left = list(shape)
    for placement, chunks in zip(placements, mesh, strict=True):
        if placement.is_replicate():
            continue
        if type(placement).__name__ not in {"Shard", "_StridedShard"}:
            raise ValueError(
                f"{name}: expected Shard or Replicate placements, found {placements}; "
                f"redistribute the tensor first"
            )
        # Uneven strided shards are laid out differently by fully_shard and by distribute_tensor.
        dim: int = placement.dim  # type: ignore[attr-defined]
        factor: int = getattr(placement, "split_factor", 1)
        if factor > 1 and left[dim] % (factor * chunks):
            raise ValueError(
                f"{name}: expected dimension {dim} of {shape} to be divisible by "
                f"{factor * chunks} for strided shards, found {placements} on a mesh of {mesh}"
            )
        left[dim] = -(-left[dim] // chunks)


def _owned(
    shape: tuple[int, ...],
    placements: "tuple[Placement, ...]",
    mesh: tuple[int, ...],
    coordinate: tuple[int, ...],
) -> list[list[range]]:
    """The global indices that a rank holds in each dimension, as ranges in local order."""
    owned = [[range(size)] if size else [] for size in shape]
    for placement, chunks, index in zip(placements, mesh, coordinate, strict=True):
        if not placement.is_replicate():
            dim: int = placement.dim  # type: ignore[attr-defined]
            factor: int = getattr(placement, "split_factor", 1)
            strided = [_chunk(owned[dim], factor, i) for i in range(factor)]
            owned[dim] = [run for runs in strided for run in _chunk(runs, chunks, index)]
    return owned


def _chunk(runs: list[range], chunks: int, index: int) -> list[range]:
    """What ``torch.chunk`` would put into chunk ``index`` of the indices in ``runs``."""
    size = -(-sum(len(run) for run in runs) // chunks)
    return [
        range(
            run.start + max(size * index - at, 0),
            min(run.start + size * (index + 1) - at, run.stop),
        )
        for at, run in _placed(runs)
        if at < size * (index + 1) and at + len(run) > size * index
    ]


def _placed(runs: list[range]) -> Iterator[tuple[int, range]]:
    """Every range with the local index that it starts at."""
    at = 0
    for run in runs:
        yield at, run
        at += len(run)


def _cuts(rows: range, size: int) -> list[tuple[int, int]]:
    """The rows cut so that each piece lies within a block of ``size`` or holds whole blocks."""
    first, last = -(-rows.start // size) * size, rows.stop // size * size
    bounds = [rows.start, first, last, rows.stop] if first <= last else [rows.start, rows.stop]
    return [(a, b) for a, b in pairwise(bounds) if a < b]
