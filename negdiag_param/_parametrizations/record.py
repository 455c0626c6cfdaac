"""What a registration knows beyond the map."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """Kept beside the map by the helper; the defaults are for those that register without it."""

    name: str = "weight"  # of the tensor, for messages
    order: tuple[str, ...] = ()  # the tensors of its module, as they stood before
    persistent: bool = True  # whether the tensor is in checkpoints
    ndim: int | None = None  # of the tensor
    mesh_dims: int = 0  # of the mesh it was distributed over before fully_shard
