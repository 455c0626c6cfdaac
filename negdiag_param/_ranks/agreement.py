"""What one rank finds wrong, all ranks know before any of them writes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch.distributed as dist
from torch import Tensor

from negdiag_param._maths.feasible import Verdict
from negdiag_param._private import is_broadcasting
from negdiag_param._ranks.shards import is_sharded


def agreed(verdict: Verdict, fails: bool, weight: Tensor) -> tuple[Verdict, int | None]:
    """The verdict of all ranks that share ``weight``, and the first that cannot go on, if any."""
    if not is_sharded(weight):
        return verdict, 0 if fails else None
    pairs = zip(weight.device_mesh.get_coordinate() or (), weight.placements, strict=False)
    place = tuple(i for i, placement in pairs if not placement.is_replicate())
    said = exchanged((place, verdict, fails), [weight])
    parts = {place: verdict for place, verdict, _ in said.values()}  # replicas count once
    failed = min((rank for rank, (*_, fails) in said.items() if fails), default=None)
    return sum(parts.values(), Verdict()), failed


@contextmanager
def together(tensors: Iterable[Tensor], name: str) -> Iterator[None]:
    """Raises what the block raises; if that is on another rank, a ValueError that names it."""
    try:
        yield
    except Exception as error:
        exchanged(f"{type(error).__name__}: {error}", tensors)
        raise
    for rank, text in sorted(exchanged("", tensors).items()):
        if text:
            raise ValueError(f"{name}: expected all ranks to go on, rank {rank} cannot: {text}")


def shared(value: object, original: Tensor) -> object:
    """``value``, or that of another rank which shares ``original`` where this one has none.

    ``broadcast_from_rank0`` leaves an entry that is not the model's own to the first rank only.
    """
    for group in _groups(original):
        flags = [False] * dist.get_world_size(group)
        dist.all_gather_object(flags, value is not None, group=group)
        if any(flags) and not all(flags):
            parcel = [value]
            dist.broadcast_object_list(parcel, group=group, group_src=flags.index(True))
            value = parcel[0]
    return value


def exchanged(mine: object, tensors: Iterable[Tensor]) -> dict[int, Any]:
    """What each of the ranks that share ``tensors`` has to say, by rank.

    One exchange for each dimension of their meshes, so all have to come; none if all are plain.
    """
    groups = dict.fromkeys(chain.from_iterable(map(_groups, tensors)))
    said = {dist.get_rank() if groups else 0: mine}
    for group in groups:
        everybodys: list[dict[int, Any]] = [{}] * dist.get_world_size(group)
        dist.all_gather_object(everybodys, said, group=group)
        said = {rank: words for one in everybodys for rank, words in one.items()}
    return said


def _groups(original: Tensor) -> "list[dist.ProcessGroup | None]":
    """Whose ranks all come here together: the mesh's, or all ranks where they load."""
    if not is_sharded(original):
        return [None] if is_broadcasting() else []
    mesh = original.device_mesh
    return [] if mesh.get_coordinate() is None else [*mesh.get_all_groups()]
