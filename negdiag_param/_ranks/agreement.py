"""What one rank finds wrong, all ranks know before any of them writes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from negdiag_param._callers import is_broadcasting
from negdiag_param._maths.feasible import Verdict
from negdiag_param._ranks.dtensor import is_sharded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Finding(NamedTuple):
    """The verdict on a diagonal, and the first rank that cannot go on, if any."""

    verdict: Verdict
    failed: int | None


def agreed(verdict: Verdict, fails: bool, weight: Tensor) -> Finding:
    """What all ranks that share ``weight`` found together; what this one found, if it is plain.

    One small collective for each dimension of the mesh, so every rank has to come here.
    """
    if not is_sharded(weight) or weight.device_mesh.get_coordinate() is None:
        return Finding(verdict, 0 if fails else None)
    import torch.distributed as dist

    mesh = weight.device_mesh
    rank = float(dist.get_rank()) if fails else torch.inf
    counts = [verdict.entries, verdict.not_finite, verdict.infeasible]
    device = weight.to_local().device
    row = torch.tensor([*counts, verdict.largest, -rank], dtype=torch.float64, device=device)
    for dim, placement in enumerate(weight.placements):
        rows = [torch.empty_like(row) for _ in range(mesh.size(dim))]
        dist.all_gather(rows, row, group=mesh.get_group(dim))
        table = torch.stack(rows)
        row = table.amax(0)
        if not placement.is_replicate():
            row[:3] = table[:, :3].sum(0)
    entries, not_finite, infeasible, largest, failed = row.tolist()
    together = Verdict(int(entries), int(not_finite), int(infeasible), largest)
    return Finding(together, None if failed == -torch.inf else int(-failed))


@contextmanager
def together(tensors: Iterable[Tensor], name: str) -> Iterator[None]:
    """Raises on all ranks that share ``tensors`` what the block raises on one of them.

    One small collective for each dimension of their meshes; none if all are plain.

    Raises:
        Exception: what the block raised.
        ValueError: where it raised nothing but did on another rank, naming that.
    """
    reason = None
    try:
        yield
    except Exception as error:
        reason = error
    said: dict[int, str] = {}
    for group in dict.fromkeys(chain.from_iterable(map(_sharing, tensors))):
        import torch.distributed as dist

        mine = said if reason is None else {dist.get_rank(): f"{type(reason).__name__}: {reason}"}
        everybodys: list[dict[int, str]] = [{}] * dist.get_world_size(group)
        dist.all_gather_object(everybodys, said | mine, group=group)
        said = {rank: text for one in everybodys for rank, text in one.items()}
    if reason is not None:
        raise reason
    if said:
        rank = min(said)
        raise ValueError(f"{name}: expected all ranks to go on, rank {rank} cannot: {said[rank]}")


def shared(value: object, original: Tensor) -> object:
    """``value``, or that of another rank which shares ``original`` where this one has none.

    ``broadcast_from_rank0`` leaves an entry that is not the model's own to the first rank only.
    """
    for group in _sharing(original):
        import torch.distributed as dist

        flags = [False] * dist.get_world_size(group)
        dist.all_gather_object(flags, value is not None, group=group)
        if any(flags) and not all(flags):
            parcel = [value]
            dist.broadcast_object_list(parcel, group=group, group_src=flags.index(True))
            value = parcel[0]
    return value


def _sharing(original: Tensor) -> "list[ProcessGroup | None]":
    """The groups whose ranks all come here together: the mesh's, or all ranks where they load."""
    if not is_sharded(original):
        return [None] if is_broadcasting() else []
    mesh = original.device_mesh
    return [] if mesh.get_coordinate() is None else [*mesh.get_all_groups()]
