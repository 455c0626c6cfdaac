"""What data, tensor and fully sharded parallelism do not go along with, and in which order."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from negdiag_param import _private
from negdiag_param._ranks.dtensor import is_sharded, mesh_dims

ORDER = "parallelize_module -> register_negative_diagonal -> fully_shard"


def check_registrable(owner: nn.Module) -> None:
    """Refuses a module whose parameters ``fully_shard`` has taken hold of already."""
    if _private.is_managed_by_fsdp(owner):
        raise ValueError(
            f"expected a module that is not sharded yet, got a {type(owner).__name__} "
            f"that fully_shard or FullyShardedDataParallel manages; the order is {ORDER}"
        )


def check_removable(owner: nn.Module) -> None:
    """Refuses to take parameters from under a ``fully_shard`` that manages them."""
    if _private.is_managed_by_fsdp(owner):
        raise ValueError(
            f"expected a module that is not sharded, got a {type(owner).__name__} that "
            f"fully_shard or FullyShardedDataParallel manages; load plain_state_dict(model) into "
            f"a model without the negative diagonal instead"
        )


def check_assignable(owner: nn.Module, target: Tensor, before: int) -> None:
    """Refuses a write to a tensor that ``fully_shard`` has gathered and is about to drop.

    What it has sharded lies on a mesh of more dimensions than ``before``.

    Raises:
        ValueError: if ``target`` is such a tensor.
    """
    if _private.is_managed_by_fsdp(owner) and mesh_dims(target) <= before:
        raise ValueError(
            "expected a sharded tensor to assign to, got the gathered one of a forward "
            "pass, which would lose the value; call reshard() on the module given to "
            "fully_shard first, or assign before FullyShardedDataParallel wraps the model"
        )


def check_whole(original: Tensor, ndim: int | None) -> None:
    """Refuses what FullyShardedDataParallel leaves outside of a forward pass."""
    flat = ndim is not None and original.ndim != ndim
    plain = type(original) in (Tensor, nn.Parameter) and not original.is_meta
    freed = plain and original.numel() > 0 and original.untyped_storage().nbytes() == 0
    if flat or freed:
        raise ValueError(
            f"expected a tensor of {ndim} dimensions, got what is left of it outside of a "
            f"forward pass, shape {tuple(original.shape)}, {original.dtype}; go within "
            f"FullyShardedDataParallel.summon_full_params(model)"
        )


def check_parallelizable(originals: Iterable[Tensor], owner: nn.Module) -> None:
    """Refuses a parallel style that starts on a registered module, before it converts anything."""
    if not all(map(is_sharded, originals)):
        raise ValueError(
            f"expected a {type_before_parametrizations(owner).__name__} without a negative "
            f"diagonal to distribute, got a registered one; the order is {ORDER}"
        )
