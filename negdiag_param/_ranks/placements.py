"""From DTensor placements to the parts of the diagonal that a rank holds."""

from functools import lru_cache
from typing import TYPE_CHECKING

from negdiag_param._maths.diagonal import Diagonal
from negdiag_param._ranks import geometry
from negdiag_param._ranks.geometry import Split
from negdiag_param._ranks.part import Part

if TYPE_CHECKING:
    from torch.distributed.tensor import Placement


@lru_cache(maxsize=4096)
def parts(
    shape: tuple[int, ...],
    found: tuple[int, ...],
    placements: "tuple[Placement, ...]",
    mesh: tuple[int, ...],
    coordinate: tuple[int, ...],
    diagonal: Diagonal,
) -> tuple[Part, ...]:
    """The diagonal in the shard of one rank, line by line; none may be left."""
    _check(shape, placements, mesh)
    owned = geometry.owned(shape, splits(placements, mesh, coordinate))
    held = tuple(sum(map(len, runs)) for runs in owned)
    if held != found:
        raise ValueError(
            f"expected a shard of shape {held} at {coordinate} of a mesh of {mesh}, as "
            f"torch.chunk splits {shape} for {placements}, found {found}"
        )
    dims = diagonal.resolved(len(shape))
    lines = geometry.lines(shape, owned, dims, diagonal.blocks, diagonal.taps == "center")
    return tuple(Part(dims, line.blocks, "all", line.offset, line.box) for line in lines)


def splits(
    placements: "tuple[Placement, ...]", mesh: tuple[int, ...], coordinate: tuple[int, ...]
) -> list[Split]:
    """The splits that the mesh makes one after the other; replicas make none."""
    return [
        Split(placement.dim, chunks, index, getattr(placement, "split_factor", 1))  # type: ignore[attr-defined]
        for placement, chunks, index in zip(placements, mesh, coordinate, strict=True)
        if not placement.is_replicate()
    ]


def _check(
    shape: tuple[int, ...], placements: "tuple[Placement, ...]", mesh: tuple[int, ...]
) -> None:
    for placement in placements:
        if not (placement.is_replicate() or type(placement).__name__ in {"Shard", "_StridedShard"}):
            raise ValueError(
                f"expected Shard or Replicate placements, found {placements}; "
                f"redistribute the tensor first"
            )
    # Uneven strided shards are laid out differently by fully_shard and by distribute_tensor.
    left = list(shape)
    for dim, chunks, _, factor in splits(placements, mesh, mesh):
        if factor > 1 and left[dim] % (factor * chunks):
            raise ValueError(
                f"expected dimension {dim} of {shape} to be divisible by "
                f"{factor * chunks} for strided shards, found {placements} on a mesh of {mesh}"
            )
        left[dim] = -(-left[dim] // chunks)
